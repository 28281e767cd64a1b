//! What comes to the port as HTTP: gRPC, a WebSocket, or a question about health. Nothing else is here.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tonic::body::Body;

use crate::admission::Stay;
use crate::attend::attend;
use crate::carrier::{Inlet, Outlet};
use crate::grpc;
use crate::serve::{Phase, Shared};
use crate::websocket::{self, Form};

/// Answers the requests of one connection.
#[derive(Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
    stay: Arc<Stay>,
    /// It came over a Unix socket, where nobody has a port.
    is_unix: bool,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>, stay: Arc<Stay>, is_unix: bool) -> Self {
        Self {
            shared,
            stay,
            is_unix,
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let needs_host = request.version() < Version::HTTP_2;
        let rules = &self.shared.rules;
        if !rules.admits(request.headers(), needs_host, !self.is_unix) {
            return only(StatusCode::FORBIDDEN);
        }
        let serving = *self.shared.phase.borrow() == Phase::Open;
        let node = Arc::clone(&self.shared.node);
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => self.calmly(StatusCode::OK),
            (&Method::GET | &Method::HEAD, "/readyz") if serving => self.calmly(StatusCode::OK),
            (&Method::GET | &Method::HEAD, "/readyz") => {
                self.calmly(StatusCode::SERVICE_UNAVAILABLE)
            }
            (&Method::GET, "/v1/ws") => self.upgrade(request),
            (&Method::POST, path) if is_grpc(request.headers()) => match path {
                grpc::ATTACH => grpc::attached(node, self.stay, request).await,
                grpc::EXCHANGED => grpc::exchanged(node, self.stay, request).await,
                grpc::HEALTH => {
                    self.stay.visit().calm();
                    grpc::checked(serving, request).await
                }
                _ => grpc::unknown(),
            },
            _ => only(StatusCode::NOT_FOUND),
        }
    }

    /// What needs no credential keeps its connection.
    fn calmly(&self, status: StatusCode) -> Response<Body> {
        self.stay.visit().calm();
        only(status)
    }

    fn upgrade(self, mut request: Request<Incoming>) -> Response<Body> {
        let headers = request.headers();
        let asked = has(headers, &CONNECTION, "upgrade") && has(headers, &UPGRADE, "websocket");
        let version = headers.get(SEC_WEBSOCKET_VERSION);
        let key = headers.get(SEC_WEBSOCKET_KEY);
        let (true, true, Some(key)) = (asked, version.is_some_and(|it| it == "13"), key) else {
            return only(StatusCode::UPGRADE_REQUIRED);
        };
        let offered = headers.get(SEC_WEBSOCKET_PROTOCOL);
        let offered = offered.and_then(|offered| offered.to_str().ok());
        let Some(form) = offered.and_then(Form::offered) else {
            return only(StatusCode::BAD_REQUEST);
        };
        let accept = derive_accept_key(key.as_bytes());
        let mut answer = only(StatusCode::SWITCHING_PROTOCOLS);
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(form.name()),
        );
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        let upgrading = hyper::upgrade::on(&mut request);
        drop(tokio::spawn(async move {
            // A client that went away before has no session.
            let Ok(upgraded) = upgrading.await else {
                return;
            };
            let stream = Box::new(TokioIo::new(upgraded));
            let (inlet, outlet) = websocket::accepted(stream, form).await;
            let carrier = (Inlet::WebSocket(inlet), Outlet::WebSocket(outlet));
            let node = Arc::clone(&self.shared.node);
            attend(node, self.stay, carrier, form == Form::Json).await;
        }));
        answer
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}

/// A status and nothing else.
fn only(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

fn has(headers: &HeaderMap, name: &hyper::header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens.any(|given| given.trim().eq_ignore_ascii_case(token))
}
