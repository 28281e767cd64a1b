//! Which names a node answers to, and which web pages may reach it: a page of another origin must not, and neither must one
//! whose name was made to lead here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, HeaderMap, ORIGIN};
use loom_core::{Error, Result};

/// The rules of one node.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// `name` or `name:port`, lower case.
    hosts: BTreeSet<String>,
    /// `scheme://name:port` with the port left out where it is the scheme's.
    origins: BTreeSet<String>,
    ports: BTreeSet<u16>,
    /// It listens on all addresses of the machine: any of them names it.
    anywhere: bool,
}

impl Rules {
    /// # Errors
    /// `INVALID_PARAMS`: an origin is not `scheme://name[:port]`.
    pub(crate) fn new(bound: &[SocketAddr], origins: &[String], hosts: &[String]) -> Result<Self> {
        let mut made = Self::default();
        for address in bound {
            made.ports.insert(address.port());
            made.anywhere |= address.ip().is_unspecified();
            made.hosts.insert(address.to_string());
        }
        for host in hosts {
            made.hosts.insert(host.to_ascii_lowercase());
        }
        for origin in origins {
            let origin = origin.trim_end_matches('/').to_ascii_lowercase();
            let host = match origin.split_once("://") {
                Some(("http" | "https", host)) if is_authority(host) => host.to_owned(),
                _ => {
                    let message = format!("{origin:?} is no origin");
                    return Err(Error::invalid("origins", message)
                        .hint("an origin is like https://shop.example or http://localhost:3000"));
                }
            };
            made.hosts.insert(host);
            made.origins.insert(origin);
        }
        Ok(made)
    }

    /// Whether a request with these headers may come in. HTTP/2 has no Host; a page cannot leave out its Origin.
    pub(crate) fn admits(&self, headers: &HeaderMap, needs_host: bool, needs_port: bool) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().map(|host| host.to_str().unwrap_or(""));
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = origins.next().map(|origin| origin.to_str().unwrap_or(""));
        if hosts.next().is_some() || origins.next().is_some() {
            return false;
        }
        let host = match host {
            Some(host) => self.is_mine(&host.to_ascii_lowercase(), needs_port),
            None => !needs_host,
        };
        host && origin.is_none_or(|origin| self.is_trusted(&origin.to_ascii_lowercase()))
    }

    fn is_mine(&self, host: &str, needs_port: bool) -> bool {
        if self.hosts.contains(host) {
            return true;
        }
        let Some((name, port)) = split(host) else {
            return false;
        };
        if self.hosts.contains(name) {
            return true;
        }
        // On a Unix socket nobody has a port.
        let port = match port {
            Some(port) => self.ports.is_empty() || self.ports.contains(&port),
            None => self.ports.is_empty() || !needs_port,
        };
        port && (is_loopback(name) || self.anywhere && address(name).is_some())
    }

    fn is_trusted(&self, origin: &str) -> bool {
        if self.origins.contains(origin) {
            return true;
        }
        // A page that the node's own machine serves on the node's own port.
        match origin.split_once("://") {
            Some(("http" | "https", host)) => split(host).is_some_and(|(name, port)| {
                is_loopback(name) && port.is_some_and(|port| self.ports.contains(&port))
            }),
            _ => false,
        }
    }
}

fn is_authority(host: &str) -> bool {
    !host.is_empty() && !host.contains(['/', '@', '?', '#', ' '])
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || address(name).is_some_and(|address| address.is_loopback())
}

fn address(name: &str) -> Option<IpAddr> {
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    bare.unwrap_or(name).parse().ok()
}

/// A name, in brackets if it is an IPv6 address, and its port.
fn split(host: &str) -> Option<(&str, Option<u16>)> {
    let at = match host.rfind(']') {
        Some(end) => host.get(end..)?.find(':').map(|at| end + at),
        None => host.find(':'),
    };
    match at {
        None => Some((host, None)),
        Some(at) => {
            let (name, port) = host.split_at(at);
            Some((name, Some(port.get(1..)?.parse().ok()?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rules: &Rules, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        rules.admits(&headers, true, true)
    }

    // requirement: BRIDGE-ORIGIN
    #[test]
    fn only_names_of_the_node_and_origins_that_are_configured_come_in() {
        let bound = ["127.0.0.1:7420".parse().unwrap()];
        let origins = ["https://Shop.example".to_owned()];
        let rules = Rules::new(&bound, &origins, &["node.internal".to_owned()]).unwrap();
        for host in [
            "127.0.0.1:7420",
            "localhost:7420",
            "LOCALHOST:7420",
            "[::1]:7420",
            "node.internal:9",
            "shop.example",
        ] {
            assert!(asked(&rules, host, None), "{host}");
        }
        for host in [
            "evil.example:7420",
            "localhost",
            "localhost:7421",
            "localhost:7420.evil.example",
            "localhost.evil.example:7420",
            "192.0.2.1:7420",
            "127.0.0.1:7420@evil.example",
            "",
            ":7420",
            "[::1",
        ] {
            assert!(!asked(&rules, host, None), "{host}");
        }
        let mine = "localhost:7420";
        for origin in [
            "https://shop.example",
            "http://localhost:7420",
            "http://127.0.0.1:7420",
        ] {
            assert!(asked(&rules, mine, Some(origin)), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://shop.example",
            "https://shop.example:8443",
            "https://shop.example.evil.example",
            "http://localhost:3000",
            "http://localhost",
            "file://",
        ] {
            assert!(!asked(&rules, mine, Some(origin)), "{origin}");
        }
    }

    // requirement: BRIDGE-ORIGIN
    #[test]
    fn over_a_unix_socket_this_machine_is_named_without_a_port() {
        let bound = ["127.0.0.1:7420".parse().unwrap()];
        let rules = Rules::new(&bound, &[], &[]).unwrap();
        for (host, comes_in) in [("localhost", true), ("evil.example", false)] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            assert_eq!(rules.admits(&headers, true, false), comes_in, "{host}");
            assert!(!rules.admits(&headers, true, true), "{host}");
        }
    }

    // requirement: BRIDGE-ORIGIN
    #[test]
    fn a_node_on_all_addresses_is_named_by_any_address_but_by_no_foreign_name() {
        let bound = ["0.0.0.0:7420".parse().unwrap()];
        let rules = Rules::new(&bound, &[], &[]).unwrap();
        assert!(asked(&rules, "192.0.2.1:7420", None));
        assert!(asked(&rules, "[2001:db8::1]:7420", None));
        assert!(!asked(&rules, "evil.example:7420", None));
    }

    // requirement: BRIDGE-ORIGIN
    #[test]
    fn two_hosts_or_origins_are_one_too_many() {
        let bound = ["127.0.0.1:7420".parse().unwrap()];
        let rules = Rules::new(&bound, &[], &[]).unwrap();
        let mut headers = HeaderMap::new();
        headers.append(HOST, "localhost:7420".parse().unwrap());
        headers.append(HOST, "evil.example".parse().unwrap());
        assert!(!rules.admits(&headers, true, true));
        assert!(Rules::new(&bound, &["shop.example".into()], &[]).is_err());
    }
}
