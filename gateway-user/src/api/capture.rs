//! CaptureDenied: the first bytes of denied packets as they happen, bounded in time and size. The programs copy packets for as long as a
//! stream of this kind lives.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use gateway_ebpf::abi::{Captured, SNAP};
use lazaret_proto::v1;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    denials::{Answers, Filter, Source, Teller, answers, shutting_down},
    page::limit,
    render,
};
use crate::{
    access::shares::Taken,
    events::{Captures, Capturing, Event},
};

/// Seconds of a capture that names none, and the most.
const SECONDS: [u32; 2] = [60, 3600];
/// Bytes of a capture that names none, and the most.
const BYTES: [u64; 2] = [10 << 20, 1 << 30];
/// Packets that are looked up together.
const BATCH: usize = 64;

/// Begins a capture.
pub(super) async fn capture(
    teller: Teller,
    captures: &Captures,
    filter: Filter,
    r: &v1::CaptureDeniedRequest,
    stopped: watch::Receiver<bool>,
    permit: Taken,
) -> Result<Answers<v1::CaptureDeniedResponse>, Status> {
    let seconds = limit(r.seconds, SECONDS[0], SECONDS[1]);
    let bytes = if r.max_bytes == 0 {
        BYTES[0]
    } else {
        r.max_bytes.min(BYTES[1])
    };
    let lost = render::captures_lost(&teller.losses().await?);
    let wall_of_boot = teller.clock.wall_of_boot();
    tracing::info!(seconds, bytes, "a capture of denied packets begins");
    Ok(answers(Capture {
        capturing: captures.begin(),
        queue: VecDeque::new(),
        teller,
        filter,
        wall_of_boot,
        left: bytes,
        until: Instant::now() + Duration::from_secs(seconds.into()),
        lost,
        over: false,
        stopped,
        _permit: permit,
    }))
}

struct Capture {
    capturing: Capturing,
    queue: VecDeque<v1::CaptureDeniedResponse>,
    teller: Teller,
    filter: Filter,
    /// One for the whole capture: a step of the wall clock does not put packets out of order.
    wall_of_boot: i64,
    left: u64,
    until: Instant,
    /// Total when it began.
    lost: u64,
    over: bool,
    stopped: watch::Receiver<bool>,
    _permit: Taken,
}

impl Source for Capture {
    type Answer = v1::CaptureDeniedResponse;

    async fn next(&mut self) -> Option<Result<Self::Answer, Status>> {
        loop {
            if let Some(ready) = self.queue.pop_front() {
                return Some(Ok(ready));
            }
            if self.over {
                return None;
            }
            if let Err(e) = self.more().await {
                return Some(Err(e));
            }
        }
    }
}

impl Capture {
    /// Waits for something to happen, and puts what is to be said of it into the queue.
    async fn more(&mut self) -> Result<(), Status> {
        let live = &mut self.capturing.live;
        let received = tokio::select! {
            // The time is up however many packets there are.
            biased;
            _ = self.stopped.wait_for(|s| *s) => return Err(shutting_down()),
            () = sleep_until(self.until) => None,
            received = live.recv() => Some(received),
        };
        let Some(mut received) = received else {
            return self.end("time").await;
        };
        let (mut packets, mut missed) = (Vec::new(), 0);
        loop {
            match received {
                Ok(packet) if self.filter.matches(&event(&packet)) => packets.push(packet),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(n)) => missed += n,
                Err(broadcast::error::RecvError::Closed) => return Err(shutting_down()),
            }
            if packets.len() == BATCH {
                break;
            }
            received = match live.try_recv() {
                Ok(packet) => Ok(packet),
                Err(broadcast::error::TryRecvError::Lagged(n)) => Err(broadcast::error::RecvError::Lagged(n)),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => break,
            };
        }
        if missed > 0 {
            self.queue.push_back(v1::CaptureDeniedResponse {
                missed,
                ..v1::CaptureDeniedResponse::default()
            });
        }
        self.take(&packets).await
    }

    async fn take(&mut self, packets: &[Arc<Captured>]) -> Result<(), Status> {
        let events: Vec<Event> = packets.iter().map(|p| event(p)).collect();
        let denials = self.teller.tell(&events).await?;
        for (packet, denial) in packets.iter().zip(denials) {
            if !self.filter.matches_device(&denial) {
                continue;
            }
            let data = bytes(packet);
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return self.end("bytes").await;
            };
            self.left = left;
            let grown = data.len().saturating_sub(packet.captured as usize) as u32;
            self.queue.push_back(v1::CaptureDeniedResponse {
                packet: Some(v1::CapturedPacket {
                    denial: Some(denial),
                    at_ns: packet.denial.at.saturating_add_signed(self.wall_of_boot),
                    ethernet: packet.ethernet != 0,
                    length: packet.length.saturating_add(grown),
                    data,
                }),
                ..v1::CaptureDeniedResponse::default()
            });
        }
        Ok(())
    }

    async fn end(&mut self, why: &str) -> Result<(), Status> {
        self.over = true;
        let lost = render::captures_lost(&self.teller.losses().await?).saturating_sub(self.lost);
        self.queue.push_back(v1::CaptureDeniedResponse {
            ended: why.to_owned(),
            lost,
            ..v1::CaptureDeniedResponse::default()
        });
        Ok(())
    }
}

fn event(packet: &Captured) -> Event {
    packet.denial.into()
}

/// What was captured, as it was on the wire: a tag that the driver took off is put back.
pub(super) fn bytes(packet: &Captured) -> Vec<u8> {
    let captured = (packet.captured as usize).min(SNAP);
    let data = &packet.bytes[..captured];
    match (packet.ethernet != 0 && packet.vlan != 0, data.split_at_checked(12)) {
        (true, Some((addresses, rest))) => [addresses, &packet.vlan.to_be_bytes(), rest].concat(),
        _ => data.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use gateway_ebpf::abi::Denial;

    use super::*;

    #[test]
    fn a_tag_that_was_taken_off_is_put_back_and_lengths_are_not_believed() {
        let mut packet = Captured {
            denial: Denial::default(),
            length: 60,
            captured: 20,
            ethernet: 1,
            vlan: 0x88a8_2007,
            bytes: [0xaa; SNAP],
        };
        let data = bytes(&packet);
        assert_eq!(
            (data.len(), &data[10..18]),
            (24, &[0xaa, 0xaa, 0x88, 0xa8, 0x20, 7, 0xaa, 0xaa][..])
        );
        packet.captured = 8;
        assert_eq!(bytes(&packet).len(), 8, "too short for a tag");
        packet.captured = u32::MAX;
        packet.ethernet = 0;
        assert_eq!(bytes(&packet).len(), SNAP);
    }
}
