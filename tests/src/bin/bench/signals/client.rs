//! The MDM of the benchmark: releases devices over mTLS, on the stream, as concurrent calls, and one at a time. Every answer must say "enforced".

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use lazaret_proto::v1::{
    self as pb, device_service_client::DeviceServiceClient, policy_service_client::PolicyServiceClient,
    report_policy_request::Signal,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::fleet::{self, Fleet};

/// Signals of the stream that are sent and not yet answered.
const WINDOW: usize = 1024;
/// Calls at a time.
const CALLS: usize = 64;

/// All of them on one stream; the whole time, and each one's from being sent to its answer.
pub(crate) fn stream(fleet: &Fleet, devices: &[u32]) -> Result<(Duration, Vec<Duration>)> {
    let client = fleet.gateway.mdm()?;
    client.block_on(async {
        let mut service = PolicyServiceClient::new(client.channel());
        let (send, sending) = mpsc::channel(WINDOW);
        let start = Instant::now();
        let mut answers = service.report_policy(ReceiverStream::new(sending)).await?.into_inner();
        // By position in the stream.
        let mut sent: Vec<Instant> = Vec::with_capacity(devices.len());
        let mut latencies = Vec::with_capacity(devices.len());
        let mut waiting = devices.iter();
        while latencies.len() < devices.len() {
            while sent.len() - latencies.len() < WINDOW
                && let Some(n) = waiting.next()
            {
                let signal = Some(Signal::Applied(request(*n)));
                sent.push(Instant::now());
                let message = pb::ReportPolicyRequest { signal };
                send.send(message).await.context("the stream has ended")?;
            }
            let answer = answers.message().await?.context("the stream has ended")?;
            let started = sent.get(usize::try_from(answer.position)?).context("an answer to nothing")?;
            latencies.push(started.elapsed());
            if let Some(refusal) = &answer.refusal {
                bail!("{}: {refusal:?}", answer.device_id);
            }
            enforced(answer.enforcement())?;
        }
        Ok((start.elapsed(), latencies))
    })
}

/// The same as so many calls at a time, over one connection.
pub(crate) fn unary(fleet: &Fleet, devices: &[u32]) -> Result<(Duration, Vec<Duration>)> {
    let client = fleet.gateway.mdm()?;
    client.block_on(async {
        let start = Instant::now();
        let mut calls = JoinSet::new();
        let mut latencies = Vec::with_capacity(devices.len());
        for n in devices {
            if calls.len() == CALLS
                && let Some(done) = calls.join_next().await
            {
                latencies.push(done??);
            }
            calls.spawn(call(client.channel(), *n));
        }
        while let Some(done) = calls.join_next().await {
            latencies.push(done??);
        }
        Ok((start.elapsed(), latencies))
    })
}

/// One after the other: how long each takes. Calls and connection share the runtime's one thread, so that no thread of the client's own waits
/// for another of them.
pub(crate) fn lone(fleet: &Fleet, devices: &[u32]) -> Result<Vec<Duration>> {
    let client = fleet.gateway.mdm()?;
    let (channel, devices) = (client.channel(), devices.to_vec());
    client.block_on(async {
        let calls = tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(devices.len());
            for n in devices {
                latencies.push(call(channel.clone(), n).await?);
            }
            Ok(latencies)
        });
        calls.await?
    })
}

async fn call(channel: Channel, n: u32) -> Result<Duration> {
    let start = Instant::now();
    let answer = DeviceServiceClient::new(channel).report_policy_applied(request(n)).await?;
    let time = start.elapsed();
    enforced(answer.into_inner().enforcement())?;
    Ok(time)
}

fn enforced(level: pb::Enforcement) -> Result<()> {
    ensure!(level == pb::Enforcement::Enforced, "answered {level:?}");
    Ok(())
}

fn request(n: u32) -> pb::ReportPolicyAppliedRequest {
    let device_id = fleet::name(n);
    pb::ReportPolicyAppliedRequest {
        context: Some(pb::SignalContext {
            request_id: format!("bench-{device_id}"),
            observed_at: Some(SystemTime::now().into()),
            ..pb::SignalContext::default()
        }),
        device_id,
        policy_revision: "baseline-7".to_owned(),
        ..pb::ReportPolicyAppliedRequest::default()
    }
}
