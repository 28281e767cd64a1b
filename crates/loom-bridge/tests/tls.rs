//! Sessions under TLS: who is trusted, on both sides.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing, and has a clock of its own"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use common::{PATIENCE, Peer, World, local};
use loom_bridge::{Address, ClientTls, Dialing, Identity, ServeConfig, ServerTls, Target, Way};
use loom_session::LinkState;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority, and what it has signed.
struct Authority {
    pem: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn signs(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        }
    }

    fn trusted(&self) -> ClientTls {
        ClientTls {
            ca: Some(self.pem.clone()),
            ..ClientTls::default()
        }
    }
}

fn serve(identity: Identity, client_ca: Option<Vec<u8>>) -> World {
    World::new(&ServeConfig {
        tls: Some(ServerTls {
            identity,
            client_ca,
        }),
        ..local()
    })
}

fn is_kept_out(peer: &mut Peer, world: &World) {
    let before = world.serving.stats().visits.accepted;
    world.until("it was tried again", |stats| {
        stats.visits.accepted > before + 2
    });
    let state = peer.client.lock().unwrap().state().clone();
    assert_eq!(state, LinkState::Connecting);
    assert!(peer.dialing.stop(PATIENCE));
}

// requirement: BRIDGE-TLS
#[test]
fn a_client_that_trusts_the_authority_is_carried_under_tls() {
    let authority = Authority::new();
    let world = serve(authority.signs("127.0.0.1"), None);
    for (at, way) in [(1, Way::Grpc), (3, Way::WebSocket)] {
        let target = || world.target(way, Some(authority.trusted()));
        let (mut alice, mut bob) = (Peer::new(at, target()), Peer::new(at + 1, target()));
        let topic = format!("n{at}.one");
        let hears = bob.register(&format!("hears{at}"), &topic);
        alice.up();
        let large = format!("\"{}\"", "x".repeat(500_000));
        let ticket = alice.publish(&topic, large.clone());
        assert_eq!(alice.accepted(ticket), 1);
        assert_eq!(bob.hear(hears), large);
    }
}

// requirement: BRIDGE-TLS
#[test]
fn a_node_of_another_authority_or_another_name_is_not_trusted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let world = serve(authority.signs("127.0.0.1"), None);
    for way in [Way::Grpc, Way::WebSocket] {
        let mut alice = Peer::new(1, world.target(way, Some(other.trusted())));
        is_kept_out(&mut alice, &world);
        let tls = ClientTls {
            name: Some("shop.example".to_owned()),
            ..authority.trusted()
        };
        let mut bob = Peer::new(2, world.target(way, Some(tls)));
        is_kept_out(&mut bob, &world);
        // The authorities of the system do not know it either.
        let mut carol = Peer::new(3, world.target(way, Some(ClientTls::default())));
        is_kept_out(&mut carol, &world);
        let mut plain = Peer::new(4, world.target(way, None));
        is_kept_out(&mut plain, &world);
    }
}

// requirement: BRIDGE-TLS
#[test]
fn a_node_that_asks_for_certificates_lets_in_only_those_of_its_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    let world = serve(authority.signs("localhost"), Some(authority.pem.clone()));
    let tls = |identity: Option<Identity>| ClientTls {
        identity,
        name: Some("localhost".to_owned()),
        ..authority.trusted()
    };
    for (at, way) in [(1, Way::Grpc), (2, Way::WebSocket)] {
        let mut known = Peer::new(
            at,
            world.target(way, Some(tls(Some(authority.signs("alice"))))),
        );
        known.up();
        let mut without = Peer::new(8, world.target(way, Some(tls(None))));
        is_kept_out(&mut without, &world);
        let mut foreign = Peer::new(9, world.target(way, Some(tls(Some(other.signs("alice"))))));
        is_kept_out(&mut foreign, &world);
    }
}

// requirement: BRIDGE-TLS
#[test]
fn what_is_no_certificate_no_key_or_no_name_is_refused_with_the_field() {
    let authority = Authority::new();
    let good = authority.signs("127.0.0.1");
    let start = |identity: Identity, client_ca: Option<Vec<u8>>| {
        let mut world = World::new(&local());
        world.serving.stop();
        let config = ServeConfig {
            tls: Some(ServerTls {
                identity,
                client_ca,
            }),
            ..local()
        };
        let door: std::sync::Arc<dyn loom_bridge::Door> = World::engine();
        loom_bridge::Serving::start(door, &config, common::hub(), common::authority(&[]))
            .err()
            .and_then(|error| error.field)
    };
    let bad = |chain: &[u8], key: &[u8]| Identity {
        chain: chain.to_vec(),
        key: key.to_vec(),
    };
    assert_eq!(
        start(bad(b"", &good.key), None).as_deref(),
        Some("tls_cert")
    );
    assert_eq!(
        start(bad(&good.chain, b"x"), None).as_deref(),
        Some("tls_key")
    );
    let other = authority.signs("127.0.0.1");
    assert_eq!(
        start(bad(&good.chain, &other.key), None).as_deref(),
        Some("tls")
    );
    let ca = Some(b"no pem".to_vec());
    assert_eq!(start(good, ca).as_deref(), Some("tls_client_ca"));

    let target = Target {
        way: Way::Grpc,
        address: Address::Tcp {
            host: "no name".to_owned(),
            port: 1,
        },
        tls: Some(authority.trusted()),
    };
    let refused = Peer::start(target).err().unwrap();
    assert_eq!(refused.field.as_deref(), Some("url"));
    let target = Target {
        way: Way::Grpc,
        address: Address::Unix("/tmp/x".into()),
        tls: Some(authority.trusted()),
    };
    let refused: Option<Dialing> = Peer::start(target).ok();
    assert!(refused.is_none(), "TLS on a Unix socket");
}
