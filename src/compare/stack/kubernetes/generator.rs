//! The generator's Jobs while they run: made, waited for, held together by their gates, deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::errors::explain;
use super::forward::Forward;
use super::job::{self, CONTROL_PORT, METRICS_PORT};
use super::{Cluster, is_ready};
use crate::compare::conduct::{Conducted, Moment, conduct};
use crate::compare::observe::scrape;
use crate::compare::plan::Planned;
use crate::compare::stack::Pod;
use crate::result::ProcessUse;

/// A Job's pod must run within this time.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// What may pass by itself (a node that is still coming, an image that is pulled once more) is waited for this long.
const TRANSIENT: Duration = Duration::from_secs(20);

/// The Jobs of one run.
pub struct Generator {
    cluster: Cluster,
    jobs: Vec<String>,
    moments: mpsc::Receiver<Moment>,
    run: JoinHandle<anyhow::Result<Conducted>>,
    _ports: Vec<Forward>,
}

impl Cluster {
    /// Starts the parts of a run and waits until all of them can be talked to. `args` are those of the whole `load`.
    ///
    /// # Errors
    /// When a Job's pod does not start, with the reason.
    pub async fn generate(&self, planned: &Planned, args: &[String]) -> anyhow::Result<Generator> {
        // A cell that is tried again gets Jobs of another name.
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        let names: Vec<_> = (1..=self.parallelism).map(|part| self.template.name(run, part)).collect();
        let started = self.start(&names, args).await;
        let (pods, ports) = match started {
            Ok(started) => started,
            Err(error) => {
                self.delete_jobs(&names).await;
                return Err(error);
            }
        };
        let urls = ports.iter().map(|port| format!("http://{}", port.address)).collect();
        let (sender, moments) = mpsc::channel(4);
        let (cluster, pods, phases) = (self.clone(), Arc::new(pods), planned.phases);
        let connecting = Duration::from_secs(60 + u64::from(planned.viewers.max(planned.likers)) / 100);
        let run = tokio::spawn(async move {
            let alive = || {
                let (api, pods) = (cluster.pods(), Arc::clone(&pods));
                async move {
                    for pod in pods.iter() {
                        job::ensure_alive(&api, pod).await?;
                    }
                    Ok(())
                }
            };
            conduct(urls, phases, connecting, sender, alive).await
        });
        Ok(Generator { cluster: self.clone(), jobs: names, moments, run, _ports: ports })
    }

    /// Makes the Jobs; their pods' names and control ports.
    async fn start(&self, names: &[String], args: &[String]) -> anyhow::Result<(Vec<String>, Vec<Forward>)> {
        let jobs = self.jobs();
        for (part, name) in (1..).zip(names) {
            let mut args = args.to_vec();
            args.extend(["--control".into(), format!("0.0.0.0:{CONTROL_PORT}")]);
            args.extend(["--part".into(), format!("{part}/{}", names.len())]);
            args.extend(["--metrics-listen".into(), format!("0.0.0.0:{METRICS_PORT}")]);
            let job = self.template.job(name, &args)?;
            let made = jobs.create(&PostParams::default(), &job).await;
            made.map_err(|error| explain(error, &format!("making the generator's job {name}")))?;
        }
        let (mut pods, mut ports) = (Vec::new(), Vec::new());
        for name in names {
            let pod = self.until_running(name).await?;
            ports.push(Forward::open(self.pods(), &pod, CONTROL_PORT).await?);
            pods.push(pod);
        }
        Ok((pods, ports))
    }

    /// Waits until the Job's pod runs; its name.
    async fn until_running(&self, name: &str) -> anyhow::Result<String> {
        let begun = Instant::now();
        let ours = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        loop {
            let found =
                self.pods().list(&ours).await.map_err(|error| explain(error, "looking for the generator's pod"))?;
            let waited = begun.elapsed();
            match found.items.first() {
                Some(pod) => {
                    let own = pod.metadata.name.clone().unwrap_or_default();
                    if job::phase(pod) == "Running" && is_ready(pod) {
                        return Ok(own);
                    }
                    job::ensure_alive(&self.pods(), &own).await?;
                    if let Some(why) = job::cannot_start(pod).filter(|_| waited > TRANSIENT) {
                        bail!("the generator's pod {own} does not start: {why}");
                    }
                }
                None if waited > TRANSIENT => bail!("the job {name} gets no pod: {}", self.last_event(name).await),
                None => {}
            }
            if waited > STARTS_WITHIN {
                bail!(
                    "the generator's job {name} does not run after {} s: {}",
                    waited.as_secs(),
                    self.last_event(name).await
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What the cluster last said about a Job: a quota, a refusal by Pod Security.
    async fn last_event(&self, name: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let listed = events.list(&about).await.map(|events| events.items).unwrap_or_default();
        let last = listed.into_iter().filter_map(|event| event.message).next_back();
        last.unwrap_or_else(|| format!("kubectl -n {} describe job {name}", self.namespace))
    }

    async fn delete_jobs(&self, names: &[String]) {
        let jobs = self.jobs();
        for name in names {
            if let Err(error) = jobs.delete(name, &DeleteParams::background()).await {
                tracing::debug!(name, %error, "deleting a job");
            }
        }
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Generator {
    /// The next moment of the run; none: it is over, or failed.
    pub async fn moment(&mut self) -> Option<Moment> {
        self.moments.recv().await
    }

    /// The run, once there are no more moments. The Jobs are deleted.
    ///
    /// # Errors
    /// Why a part failed, with its log's last lines.
    pub async fn finish(mut self) -> anyhow::Result<Conducted> {
        let done = (&mut self.run).await.context("the run was broken off").and_then(|done| done);
        self.cluster.delete_jobs(&self.jobs).await;
        done
    }

    /// Ends it before its time.
    pub async fn cancel(self) {
        self.cluster.delete_jobs(&self.jobs).await;
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// CPU seconds, memory and descriptors the pods' own metrics told at the window's begin.
#[derive(Debug, Default)]
pub struct Used(BTreeMap<String, f64>);

impl Used {
    /// Reads the begin.
    pub async fn open(pods: &[Pod]) -> Self {
        let read = futures_util::future::join_all(pods.iter().map(|pod| async {
            let text = scrape(&pod.admin).await?;
            Some((pod.name.clone(), gauge(&text, "process_cpu_seconds_total")?))
        }));
        Self(read.await.into_iter().flatten().collect())
    }

    /// Reads the end; a pod that does not answer any more is left out, one that came in between counts from its start. A
    /// pod tells user and system time together.
    pub async fn close(&self, pods: &[Pod]) -> Vec<ProcessUse> {
        let read = futures_util::future::join_all(pods.iter().map(|pod| async {
            let text = scrape(&pod.admin).await?;
            let begin = self.0.get(&pod.name).copied().unwrap_or_default();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes and descriptors")]
            Some(ProcessUse {
                name: pod.name.clone(),
                user_s: (gauge(&text, "process_cpu_seconds_total")? - begin).max(0.0),
                system_s: 0.0,
                rss_bytes: gauge(&text, "process_resident_memory_bytes")? as u64,
                fds: gauge(&text, "process_open_fds")? as u32,
            })
        }));
        read.await.into_iter().flatten().collect()
    }
}

/// The value of a series without labels.
fn gauge(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
