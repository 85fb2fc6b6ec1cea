//! Reading and writing run files.
