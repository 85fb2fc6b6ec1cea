//! nginx and HAProxy as `compare` configures them, in front of pods of a test.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use pushlab::compare::edges::{Edge, EdgeConfig};

use crate::servers::{Process, free_port, program, wait_for_port};

/// A running edge; it ends with the test.
pub(crate) struct EdgeServer {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
}

impl EdgeServer {
    /// In front of one pod, its configuration altered where a test needs what the laboratory does not.
    pub(crate) fn start(edge: Edge, pod: SocketAddr, alter: impl Fn(&str) -> String) -> Self {
        let folder = tempfile::Builder::new().prefix("pushlab-it-edge-").tempdir().unwrap().keep();
        let (port, file) = (free_port(), folder.join("edge.conf"));
        let pods = [("pod-1".to_owned(), pod.to_string())];
        let rendered = EdgeConfig::new(edge).render(&pods, port, &folder).unwrap();
        let altered = alter(&rendered);
        assert_ne!(altered, rendered, "the alteration found its place");
        fs::write(&file, altered).unwrap();
        let (place, file) = (folder.display().to_string(), file.display().to_string());
        let (program, arguments) = if edge.buffers() {
            let nginx = program(&["nginx"], "PUSHLAB_NGINX", "apt-get install nginx");
            (nginx, ["-p", &place, "-e", "stderr", "-c", &file].map(String::from).to_vec())
        } else {
            let haproxy = program(&["haproxy"], "PUSHLAB_HAPROXY", "apt-get install haproxy");
            (haproxy, ["-db", "-f", &file].map(String::from).to_vec())
        };
        let process = Some(Process::start(&folder, &program, &arguments));
        wait_for_port(port, &folder);
        Self { process, folder, port }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

impl Drop for EdgeServer {
    fn drop(&mut self) {
        self.process = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}
