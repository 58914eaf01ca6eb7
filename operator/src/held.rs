// SPDX-License-Identifier: Apache-2.0
//! Keeps the place of who is answered until the answer has left, so that readers who do not read are few.
//!
//! In: answers of a gRPC service, with an `Arc<Place>` among their extensions where one is to be kept. Out: the same answers, in
//! pieces. A whole message would be handed to the connection at once, and wait there without a place for as long as the other side
//! likes; of pieces the connection takes the next one when there is room for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use node_api::lanes::Place;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A frame of HTTP/2 as everybody takes it.
const PIECE: usize = 16 << 10;

/// See the module.
#[derive(Clone)]
pub(crate) struct Held<S>(pub(crate) S);

impl<S: NamedService> NamedService for Held<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Held<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            Ok(match answer.extensions_mut().remove::<Arc<Place>>() {
                Some(place) => answer.map(|body| in_pieces(body, place)),
                None => answer,
            })
        })
    }
}

fn in_pieces(body: Body, place: Arc<Place>) -> Body {
    let pieces = stream::try_unfold((body, Bytes::new(), place), |(mut body, mut rest, place)| async move {
        if rest.is_empty() {
            let Some(frame) = body.frame().await.transpose()? else { return Ok(None) };
            match frame.into_data() {
                Ok(data) => rest = data,
                Err(trailers) => return Ok::<_, Status>(Some((trailers, (body, rest, place)))),
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE));
        Ok(Some((Frame::data(piece), (body, rest, place))))
    });
    Body::new(StreamBody::new(pieces))
}

#[cfg(test)]
mod tests {
    use node_api::lanes::Lanes;

    use super::*;

    #[tokio::test]
    async fn a_place_is_free_when_the_last_piece_is_taken_or_nobody_is_there() {
        let places = Lanes::new(1);
        let answer = || {
            let place = places.try_take(&[]).expect("a place");
            in_pieces(Body::new(http_body_util::Full::new(Bytes::from(vec![7; 3 * PIECE]))), Arc::new(place))
        };
        let mut body = answer();
        for _ in 0..3 {
            assert!(places.try_take(&[]).is_none());
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece, vec![7; PIECE]);
        }
        assert!(body.frame().await.is_none());
        assert!(places.try_take(&[]).is_some(), "all of it is taken");
        let mut body = answer();
        body.frame().await.unwrap().unwrap();
        assert!(places.try_take(&[]).is_none());
        drop(body);
        assert!(places.try_take(&[]).is_some(), "who is gone");
    }
}
