//! One encoding per update and format, shared by every viewer that wants it.
