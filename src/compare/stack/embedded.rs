//! The embedded stack's pods: one child process holds them all, with an in-process broker and SQLite.

use super::local::{serve, serve_args};
use super::{Deployment, Stack};
use crate::compare::plan::Planned;

pub(super) async fn deploy(stack: &Stack, planned: &Planned) -> anyhow::Result<Deployment> {
    let database = format!("sqlite:{}", stack.guardian.folder().join("pushlab.db").display());
    let mut args = serve_args(planned);
    let count = planned.pods.to_string();
    let more = ["--database-url", &database, "--nats-url", "local", "--pods", &count];
    args.extend(more.map(String::from));
    let (pods, process) = serve(stack, args, "pods", planned.pods as usize).await?;
    Ok(Deployment { pods, processes: vec![process], ..Deployment::default() })
}
