//! Request bodies on their way in: each bounded in bytes and time, all of them together in memory.
//!
//! Room is taken for what has arrived, not for what was announced: a client that announces much
//! and sends nothing holds nothing.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bounds::UNWANTED_BYTES_MAX;
use crate::bounds::UNWANTED_TIME_MAX;
use crate::enforce::answer;
use crate::enforce::config::Caps;
use crate::enforce::stream::Body;

/// Bodies are accounted for in steps of this many bytes.
const GRAIN: usize = 4 << 10;

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All bodies together fill the memory meant for them.
    NoRoom,
    TooLarge,
    Broken,
    TooSlow,
}

/// Room for all bodies together; at least one of the largest kind fits.
pub fn room(caps: &Caps) -> Semaphore {
    let grains = caps.bodies_bytes.max(caps.body_bytes).div_ceil(GRAIN);
    Semaphore::new(grains.min(Semaphore::MAX_PERMITS))
}

/// The whole body, and its place, to be held as long as the body is.
pub async fn read<'a>(
    body: Incoming,
    room: &'a Semaphore,
    caps: &Caps,
) -> Result<(Bytes, Option<SemaphorePermit<'a>>), Refused> {
    let deadline = Duration::from_secs(caps.body_seconds);
    tokio::time::timeout(deadline, collect(body, room, caps.body_bytes))
        .await
        .unwrap_or(Err(Refused::TooSlow))
}

async fn collect(
    mut body: Incoming,
    room: &Semaphore,
    most: usize,
) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Refused> {
    // What is announced is known to be too much before any of it is read.
    if body.size_hint().lower() > most as u64 {
        return Err(Refused::TooLarge);
    }
    let mut whole = BytesMut::new();
    let mut taken: Option<SemaphorePermit<'_>> = None;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Refused::Broken)?.into_data() else { continue };
        let bytes = whole.len() + piece.len();
        if bytes > most {
            return Err(Refused::TooLarge);
        }
        let held = taken.as_ref().map_or(0, SemaphorePermit::num_permits);
        let missing = u32::try_from(bytes.div_ceil(GRAIN).saturating_sub(held)).unwrap_or(u32::MAX);
        if missing > 0 {
            // Waiting could last forever: half-read bodies would wait for one another.
            let more = room.try_acquire_many(missing).map_err(|_| Refused::NoRoom)?;
            match &mut taken {
                Some(taken) => taken.merge(more),
                None => taken = Some(more),
            }
        }
        whole.extend_from_slice(&piece);
    }
    Ok((whole.freeze(), taken))
}

/// Whether the rest of a body is through, so that the connection may be used again. Closing one
/// that is being written to may take the answer along.
pub async fn discard(mut body: Incoming) -> bool {
    if body.size_hint().lower() > UNWANTED_BYTES_MAX as u64 {
        return false;
    }
    let through = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > UNWANTED_BYTES_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(UNWANTED_TIME_MAX, through).await.unwrap_or(false)
}

// === impl Refused ===

impl Refused {
    pub fn answer(self, caps: &Caps) -> Response<Body> {
        match self {
            Refused::NoRoom => answer::no_memory(),
            Refused::TooLarge => answer::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the body is larger than {} bytes", caps.body_bytes),
            ),
            Refused::Broken => answer::invalid(StatusCode::BAD_REQUEST, "the body broke off"),
            Refused::TooSlow => answer::invalid(
                StatusCode::REQUEST_TIMEOUT,
                &format!("the body took longer than {} s", caps.body_seconds),
            ),
        }
    }
}
