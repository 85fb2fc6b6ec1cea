//! Finding an installed release: by the labels the chart gives its objects, and by what these hold.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment as Workload;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};

use super::Options;
use super::edges::{Way, asks_dns_every, of_nginx};
use super::errors::explain;
use crate::compare::edges::{Edge, EdgeConfig};
use crate::compare::plan::{Accel, Broken, Planned, Switch};

/// What is known of a release.
#[derive(Debug, Clone, Default)]
pub(super) struct Release {
    /// Its name.
    pub(super) instance: String,
    /// What its objects' names begin with.
    pub(super) base: String,
    /// The pods' Deployment.
    pub(super) workload: String,
    /// Their labels.
    pub(super) selector: String,
    /// How many it has when nobody compares.
    pub(super) replicas: u32,
    /// The pods' image, and how it is pulled.
    pub(super) image: String,
    /// See `image`.
    pub(super) pull_policy: Option<String>,
    /// See `image`.
    pub(super) pull_secrets: Vec<String>,
    /// After this edges know of a change.
    pub(super) dns: Duration,
    /// For the report.
    pub(super) facts: BTreeMap<String, String>,
    /// The pods' variables.
    settings: BTreeMap<String, String>,
    ways: Vec<Way>,
    /// Configuration files: component → text.
    files: BTreeMap<String, String>,
}

/// A client for the context asked for, and that context's name.
pub(super) async fn client(options: &Options) -> anyhow::Result<(Client, String)> {
    let file = Kubeconfig::read();
    let context = options.context.clone().or_else(|| file.as_ref().ok()?.current_context.clone());
    let config = match (&file, &options.context) {
        // Within a cluster there is no kubeconfig, but a service account.
        (Err(_), None) => kube::Config::incluster().map_err(anyhow::Error::from),
        (Err(error), Some(_)) => Err(anyhow::anyhow!("{error}")),
        (Ok(kept), _) => {
            let known: Vec<_> = kept.contexts.iter().map(|context| context.name.as_str()).collect();
            if let Some(asked) = options.context.as_deref().filter(|asked| !known.contains(asked)) {
                bail!("the kubeconfig has no context {asked}; it has {}", known.join(", "));
            }
            let chosen = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
            kube::Config::from_custom_kubeconfig(kept.clone(), &chosen).await.map_err(anyhow::Error::from)
        }
    };
    let mut config = config.with_context(|| {
        let place = std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".into());
        format!(
            "no usable kubeconfig in {place}: set KUBECONFIG, or make a cluster: kind create cluster --name lab --config k8s/kind-config.yaml"
        )
    })?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
    Ok((client, context.unwrap_or_else(|| "in-cluster".into())))
}

impl Release {
    /// The release of this name, or the only one.
    ///
    /// # Errors
    /// When there is none, or several, or its pods are split by role; each with what to do.
    pub(super) async fn find(
        client: &Client,
        namespace: &str,
        context: &str,
        name: Option<&str>,
    ) -> anyhow::Result<Self> {
        let version =
            client.apiserver_version().await.map_err(|error| explain(error, &format!("context {context}")))?;
        let all: Api<Workload> = Api::namespaced(client.clone(), namespace);
        let labels = "app.kubernetes.io/name=pushlab,app.kubernetes.io/component in (app,api,sse,stomp)";
        let found = all.list(&ListParams::default().labels(labels)).await;
        let found =
            found.map_err(|error| explain(error, &format!("looking for a release in namespace {namespace}")))?.items;
        let instance = |workload: &Workload| label(workload, "app.kubernetes.io/instance");
        let names: std::collections::BTreeSet<_> = found.iter().map(instance).collect();
        let listed = Vec::from_iter(names.iter().map(String::as_str)).join(", ");
        let chosen = match (name, names.len()) {
            (_, 0) => bail!(
                "no release of the chart in namespace {namespace} of context {context}: helm install lab helm/pushlab --namespace {namespace} --create-namespace, or give --namespace"
            ),
            (Some(name), _) if !names.contains(name) => {
                bail!("no release {name} in namespace {namespace}; there is {listed}")
            }
            (Some(name), _) => name.to_owned(),
            (None, 1) => listed,
            (None, _) => bail!("namespace {namespace} holds the releases {listed}: say which by --release"),
        };
        let workload = found
            .into_iter()
            .find(|workload| instance(workload) == chosen && label(workload, "app.kubernetes.io/component") == "app");
        let workload = workload.with_context(|| {
            format!("the pods of release {chosen} are split by role; compare needs all roles in each: helm upgrade {chosen} helm/pushlab --set pods.mode=combined")
        })?;
        let mut release = Self::of(&workload, chosen)?;
        release.look_at_edges(client, namespace).await?;
        release.facts.insert("kubernetes".into(), version.git_version);
        release.look_at_pods(client, namespace).await?;
        Ok(release)
    }

    fn of(workload: &Workload, instance: String) -> anyhow::Result<Self> {
        let name = workload.metadata.name.clone().unwrap_or_default();
        let spec = workload.spec.as_ref().context("a deployment without spec")?;
        let pod = spec.template.spec.as_ref().context("a deployment without pods")?;
        let container = pod.containers.iter().find(|container| container.name == "pushlab");
        let container = container.with_context(|| format!("the deployment {name} has no container `pushlab`"))?;
        let variables = container.env.iter().flatten();
        let labels = spec.selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
        let image = container.image.clone().unwrap_or_default();
        Ok(Self {
            instance,
            base: name.strip_suffix("-pushlab").unwrap_or(&name).to_owned(),
            selector: labels.collect::<Vec<_>>().join(","),
            replicas: spec.replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1),
            pull_policy: container.image_pull_policy.clone(),
            pull_secrets: pod.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()).collect(),
            settings: variables.filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?))).collect(),
            facts: BTreeMap::from([("image".to_owned(), image.clone())]),
            workload: name,
            image,
            ..Self::default()
        })
    }

    async fn look_at_edges(&mut self, client: &Client, namespace: &str) -> anyhow::Result<()> {
        let of = |component: &str| {
            let labels =
                format!("app.kubernetes.io/instance={},app.kubernetes.io/component={component}", self.instance);
            ListParams::default().labels(&labels)
        };
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        for component in ["edge-nginx", "edge-haproxy"] {
            let kept = maps.list(&of(component)).await.map_err(|error| explain(error, "the edges' configuration"))?;
            let text = kept.items.into_iter().flat_map(|map| map.data.unwrap_or_default()).map(|(_, text)| text).next();
            let there = services.list(&of(component)).await.map_err(|error| explain(error, "the edges' services"))?;
            let names: Vec<_> = there.items.into_iter().filter_map(|service| service.metadata.name).collect();
            let Some(text) = text else { continue };
            if component == "edge-nginx" {
                self.dns = asks_dns_every(&text);
                let ways = of_nginx(&text, &format!("{}-nginx-", self.base));
                self.ways.extend(ways.into_iter().filter(|way| names.contains(&way.service)));
            } else {
                let known = [("haproxy", Edge::HaproxyLeastconn), ("haproxy-corked", Edge::HaproxyCorked)];
                for (suffix, edge) in known {
                    let service = format!("{}-{suffix}", self.base);
                    if names.contains(&service) {
                        self.ways.push(Way { config: EdgeConfig::new(edge), service });
                    }
                }
            }
            self.files.insert(component.into(), text);
        }
        Ok(())
    }

    /// Images and places of everything that belongs to the release.
    async fn look_at_pods(&mut self, client: &Client, namespace: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let all = ListParams::default().labels(&format!("app.kubernetes.io/instance={}", self.instance));
        let all = pods.list(&all).await.map_err(|error| explain(error, "listing pods"))?;
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in all.items {
            let component = label(&pod, "app.kubernetes.io/component");
            let Some(spec) = pod.spec.filter(|_| component != "load" && component != "test") else { continue };
            if let Some(image) = spec.containers.first().and_then(|container| container.image.clone()) {
                self.facts.insert(format!("image of {component}"), image);
            }
            places.entry(component).or_default().extend(spec.node_name);
        }
        for (component, mut nodes) in places {
            nodes.sort();
            nodes.dedup();
            self.facts.insert(format!("nodes of {component}"), nodes.join(", "));
        }
        Ok(())
    }

    /// The way through an edge of this kind. Which silence it gives up after is the release's own.
    pub(super) fn way(&self, edge: &EdgeConfig) -> Option<&Way> {
        self.ways.iter().find(|way| {
            let theirs = &way.config;
            (theirs.edge, theirs.retry503, &theirs.max_temp_file) == (edge.edge, edge.retry503, &edge.max_temp_file)
                && (!edge.edge.buffers() || theirs.buffering == edge.buffering)
        })
    }

    /// The configuration of the edge's server, to be kept beside the results.
    pub(super) fn evidence(&self, edge: &EdgeConfig) -> Option<(String, String)> {
        let (component, file) =
            if edge.edge.buffers() { ("edge-nginx", "nginx.conf") } else { ("edge-haproxy", "haproxy.cfg") };
        Some((file.into(), self.files.get(component)?.clone()))
    }

    /// Which of a cell's settings the pods do not have; they are the release's, and not changed here.
    pub(super) fn other_settings(&self, planned: &Planned) -> Option<String> {
        let is = |name: &str, usual: &str| self.settings.get(name).cloned().unwrap_or_else(|| usual.into());
        let span = |name: &str, usual: &str| humantime::parse_duration(&is(name, usual)).unwrap_or_default();
        let beat = span("PUSHLAB_HEARTBEAT", "10s");
        if beat != planned.heartbeat {
            let (theirs, ours) = (humantime::format_duration(beat), planned.heartbeat.as_secs());
            return Some(format!(
                "the release's heart-beat is {theirs}: helm upgrade … --set pods.heartbeatSeconds={ours}"
            ));
        }
        let on = |switch: bool| if switch { "on" } else { "off" };
        let accel = if planned.accel == Accel::No { "no" } else { "unset" };
        let differ = [
            ("PUSHLAB_MAX_AGE", span("PUSHLAB_MAX_AGE", "0s") == planned.max_age),
            ("PUSHLAB_ACCEL_BUFFERING", is("PUSHLAB_ACCEL_BUFFERING", "no") == accel),
            ("PUSHLAB_ANTI_ENTROPY", is("PUSHLAB_ANTI_ENTROPY", "on") == on(planned.anti_entropy == Switch::On)),
            ("PUSHLAB_BREAK", planned.broken == Broken::None),
        ];
        if let Some((name, _)) = differ.iter().find(|(_, same)| !same) {
            return Some(format!("the release's pods have another {name}"));
        }
        (!planned.pod_flags.is_empty())
            .then(|| format!("the release's pods are not started with {}", planned.pod_flags))
    }
}

fn label<K: kube::Resource>(object: &K, name: &str) -> String {
    object.meta().labels.as_ref().and_then(|labels| labels.get(name)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::Plan;

    fn release() -> Release {
        let workload = serde_json::json!({
            "metadata": { "name": "lab-pushlab" },
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": { "app.kubernetes.io/instance": "lab" } },
                "template": { "spec": { "containers": [{
                    "name": "pushlab", "image": "pushlab:dev", "imagePullPolicy": "IfNotPresent",
                    "env": [{ "name": "PUSHLAB_HEARTBEAT", "value": "10s" }, { "name": "PUSHLAB_ACCEL_BUFFERING", "value": "no" }],
                }] } },
            },
        });
        let mut release = Release::of(&serde_json::from_value(workload).unwrap(), "lab".into()).unwrap();
        let off = EdgeConfig::new(Edge::NginxLeastConn);
        release.ways = vec![
            Way { config: off.clone(), service: "lab-nginx-sse".into() },
            Way { config: EdgeConfig { buffering: true, ..off }, service: "lab-nginx-sse-buffered".into() },
        ];
        release
    }

    #[test]
    fn a_release_is_read_from_its_deployment() {
        let release = release();
        assert_eq!((release.base.as_str(), release.replicas, release.image.as_str()), ("lab", 2, "pushlab:dev"));
        assert_eq!(release.selector, "app.kubernetes.io/instance=lab");
        let buffered = EdgeConfig { buffering: true, ..EdgeConfig::new(Edge::NginxLeastConn) };
        assert_eq!(release.way(&buffered).unwrap().service, "lab-nginx-sse-buffered");
        assert!(release.way(&EdgeConfig::new(Edge::NginxRr)).is_none());
    }

    #[test]
    fn a_cell_with_other_settings_is_told_which() {
        let release = release();
        let cell = &Plan::load("kind").unwrap().0.expand(None)[0];
        assert_eq!(release.other_settings(cell), None);
        let said = |cell: Planned| release.other_settings(&cell).unwrap();
        let cell = || cell.clone();
        assert!(said(Planned { heartbeat: Duration::from_secs(2), ..cell() }).contains("pods.heartbeatSeconds=2"));
        assert!(said(Planned { max_age: Duration::from_secs(5), ..cell() }).contains("PUSHLAB_MAX_AGE"));
        assert!(said(Planned { anti_entropy: Switch::Off, ..cell() }).contains("PUSHLAB_ANTI_ENTROPY"));
        assert!(said(Planned { pod_flags: "--resume replay".into(), ..cell() }).contains("--resume replay"));
    }
}
