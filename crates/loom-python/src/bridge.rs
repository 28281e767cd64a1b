//! What lets other processes attach to the engine of this one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loom_bridge::{Door, Identity, ServeConfig, ServerTls, Serving};
use loom_core::{Code, Core, Error, GrantTexts, Grants, Limits, Moment, SessionId};
use loom_session::{Authority, Credential, HubConfig, Looked, ReadErrand};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::json;

use crate::convert::{refusal, refuse};
use crate::engine::{Shared, random_id};
use crate::history::{Start, look};
use crate::remote::frames;
use crate::threads::lock;
use crate::wake::Wake;

/// Tells which namespaces got their first session.
struct Opening {
    shared: Arc<Shared>,
    opened: Mutex<Vec<String>>,
    wake: Arc<Wake>,
}

impl Door for Opening {
    fn with(&self, step: &mut dyn FnMut(&mut Core, Moment)) -> loom_core::Result<()> {
        self.shared.outside(|core, at| step(core, at))
    }

    fn watch(&self, waker: Arc<dyn Fn(SessionId) + Send + Sync>) {
        self.shared.watch(waker);
    }

    fn open(&self, namespace: &str) -> loom_core::Result<()> {
        self.shared.open(namespace)?;
        let mut opened = lock(&self.opened);
        if !opened.iter().any(|known| known == namespace) {
            opened.push(namespace.to_owned());
            self.wake.write();
        }
        Ok(())
    }

    fn read(&self, read: &ReadErrand) -> loom_core::Result<Looked> {
        let start = Start::read(&read.start)?;
        let seen = look(&self.shared, &read.namespace, &read.filters, start)?;
        Ok(Looked {
            events: seen.events,
            next: seen.next,
            at_end: seen.at_end,
        })
    }
}

/// The id of a credential, SHA-256 of its token, its namespace, six lists of filters, and when it expires.
pub(crate) type RawCredential = (String, Vec<u8>, String, RawGrants, Option<u64>);
type RawGrants = (
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<String>,
);
/// Origins of web pages, and further names of the node.
pub(crate) type Names = (Vec<String>, Vec<String>);
/// Files of a certificate, its key, and of those who vouch for clients.
pub(crate) type TlsFiles = (PathBuf, PathBuf, Option<PathBuf>);

fn texts_of(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn credential(raw: RawCredential, limits: &Limits) -> loom_core::Result<Credential> {
    let (id, hash, namespace, grants, expires_ms) = raw;
    let hash = <[u8; 32]>::try_from(hash)
        .map_err(|_| Error::invalid("hash", "a hash of a token has 32 bytes"))?;
    let (publish, subscribe) = (texts_of(&grants.0), texts_of(&grants.1));
    let (call, provide) = (texts_of(&grants.2), texts_of(&grants.3));
    let (observe, admin) = (texts_of(&grants.4), texts_of(&grants.5));
    let texts = GrantTexts {
        publish: &publish,
        subscribe: &subscribe,
        call: &call,
        provide: &provide,
        observe: &observe,
        admin: &admin,
    };
    let grants = Arc::new(Grants::parse(&texts, limits)?);
    Ok(Credential {
        id,
        hash,
        namespace,
        grants,
        expires_ms,
    })
}

fn authority(raw: Vec<RawCredential>) -> loom_core::Result<Authority> {
    let limits = Limits::default();
    let all = raw.into_iter().map(|one| credential(one, &limits));
    Ok(Authority::new(all.collect::<Result<_, _>>()?))
}

pub(crate) fn file(field: &str, path: &Path) -> loom_core::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let message = format!("{} cannot be read: {error}", path.display());
        Error::invalid(field, message)
    })
}

fn tls(files: &TlsFiles) -> loom_core::Result<ServerTls> {
    let (chain, key, client_ca) = files;
    Ok(ServerTls {
        identity: Identity {
            chain: file("tls_cert", chain)?,
            key: file("tls_key", key)?,
        },
        client_ca: client_ca
            .as_ref()
            .map(|path| file("tls_client_ca", path))
            .transpose()?,
    })
}

fn address(text: &str) -> loom_core::Result<SocketAddr> {
    text.parse().map_err(|_| {
        let message = format!("{text:?} is no address and port");
        Error::invalid("bind", message)
            .hint("127.0.0.1:7420, [::1]:7420; port 0 is any that is free")
    })
}

/// What lets other processes attach to an engine; it has a thread of its own.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Bridge {
    serving: Mutex<Option<Serving>>,
    addresses: Vec<String>,
    opening: Arc<Opening>,
}

impl Bridge {
    pub(crate) fn serve(
        shared: &Arc<Shared>,
        (tcp, unix): (Vec<String>, Option<PathBuf>),
        files: Option<&TlsFiles>,
        (origins, hosts): Names,
        credentials: Vec<RawCredential>,
    ) -> loom_core::Result<Self> {
        let wake = Wake::new().map_err(|error| Error::new(Code::Exhausted, error.to_string()))?;
        let config = ServeConfig {
            listen: tcp
                .iter()
                .map(|text| address(text))
                .collect::<Result<_, _>>()?,
            unix: unix.into_iter().collect(),
            tls: files.map(tls).transpose()?,
            origins,
            hosts,
        };
        let hub = HubConfig {
            boot: random_id().to_be_bytes(),
            limits: loom_session::Limits::default(),
            agent: concat!("loom/", env!("CARGO_PKG_VERSION")).to_owned(),
            durable: shared.settings.durability.filters.clone(),
            keeps_log: shared
                .store
                .get()
                .is_some_and(crate::log::Store::is_durable),
        };
        let opening = Arc::new(Opening {
            shared: Arc::clone(shared),
            opened: Mutex::default(),
            wake: Arc::new(wake),
        });
        let authority = authority(credentials)?;
        let door: Arc<dyn Door> = Arc::<Opening>::clone(&opening);
        let serving = Serving::start(door, &config, hub, authority)?;
        Ok(Self {
            addresses: serving
                .addresses()
                .iter()
                .map(ToString::to_string)
                .collect(),
            serving: Mutex::new(Some(serving)),
            opening,
        })
    }
}

#[pymethods]
impl Bridge {
    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    #[getter]
    fn fd(&self) -> i32 {
        self.opening.wake.fd()
    }

    fn opened(&self) -> Vec<String> {
        self.opening.wake.read();
        lock(&self.opening.opened).clone()
    }

    fn authorize(&self, py: Python<'_>, credentials: Vec<RawCredential>) -> PyResult<()> {
        let authority = authority(credentials).map_err(refuse)?;
        py.detach(|| match &*lock(&self.serving) {
            Some(serving) => serving.allow(authority),
            None => Ok(()),
        })
        .map_err(refuse)
    }

    fn stats<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let shown = py.detach(|| {
            lock(&self.serving).as_ref().map(|serving| {
                let (stats, sessions) = (serving.stats(), serving.sessions());
                show(&stats, &sessions)
            })
        });
        let shown = shown.unwrap_or_else(|| json!({}));
        PyBytes::new(py, shown.to_string().as_bytes())
    }

    fn drain(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let within = Duration::try_from_secs_f64(seconds);
        let within = within.map_err(|_| {
            refusal(
                Code::InvalidParams,
                "that is no number of seconds",
                Some("seconds"),
            )
        })?;
        py.detach(|| match &*lock(&self.serving) {
            Some(serving) => serving.drain(within),
            None => Ok(true),
        })
        .map_err(refuse)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(mut serving) = lock(&self.serving).take() {
                serving.stop();
            }
        });
        self.opening.wake.close();
    }
}

fn show(stats: &loom_bridge::Stats, sessions: &[loom_session::Shown]) -> serde_json::Value {
    let shown: Vec<_> = sessions
        .iter()
        .map(|it| {
            json!({
                "name": it.name,
                "namespace": it.namespace,
                "connected": it.is_connected,
                "credential": it.credential,
                "agent": it.agent,
                "since_ms": it.since_ms,
                "leases": it.leases,
                "registrations": it.registrations,
                "calls": it.calls,
                "frames": frames(it.progress),
            })
        })
        .collect();
    let (visits, counts) = (stats.visits, stats.sessions);
    json!({
        "connections": stats.connections,
        "strangers": stats.strangers,
        "visits": {
            "accepted": visits.accepted,
            "refused": visits.refused,
            "strangers": visits.strangers,
            "stalled": visits.stalled,
            "floods": visits.floods,
        },
        "attached": counts.attached,
        "resumed": counts.resumed,
        "refused": counts.refused,
        "fenced": counts.fenced,
        "silent": counts.silent,
        "broken": counts.broken,
        "expired": counts.expired,
        "sessions": shown,
    })
}
