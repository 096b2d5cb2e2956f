//! Bounds how many requests a service works on at a time, over all its connections.
//!
//! A gRPC message is read into memory before its handler sees it, so the bound sits in front of the decoder. What
//! waits, waits in HTTP/2's windows at its sender.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tonic::codegen::{Body, Service};
use tonic::server::NamedService;

/// A service with a bound. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Limited<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S> Limited<S> {
    pub(crate) fn new(inner: S, permits: Arc<Semaphore>) -> Self {
        Self { inner, permits }
    }
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Limited<S>
where
    S: Service<http::Request<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    B: Body + Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // The one that was polled ready takes the call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let permits = self.permits.clone();
        Box::pin(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            inner.call(request).await
        })
    }
}
