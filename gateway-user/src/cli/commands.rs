//! Each subcommand that asks the daemon: one call (or pages of one), then JSON or a table.

use std::time::Duration;

use lazaret_proto::v1;
use serde_json::{Value, json};

use super::{
    Outcome,
    args::{
        AddressesArgs, Ask, CloseArgs, Connection, CountersArgs, DeviceArgs, DeviceCommand, DevicesArgs, OpenArgs,
        QuarantineArgs, RegisterArgs, SessionCommand, State,
    },
    capture,
    client::{Client, Failure, context},
    denials, explain, json, life, policy, remote, show,
    table::{Page, write_out},
};
use crate::model::{self, prefix::Shown};

/// Runs what asks the daemon.
pub(super) fn block_on(asking: impl Future<Output = Result<Outcome, Failure>>) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Local(format!("no event loop: {e}")))?;
    runtime.block_on(asking)
}

/// Asks the daemon, and prints what it says.
pub(super) fn run(ask: &Ask) -> Result<Outcome, Failure> {
    block_on(async {
        match ask {
            Ask::Status(c) => status(c).await,
            Ask::Pools(c) => pools(c).await,
            Ask::Addresses(a) => addresses(a).await,
            Ask::Devices(a) => devices(a).await,
            Ask::Device(DeviceCommand::Show(a)) => device(a).await,
            Ask::Device(DeviceCommand::Register(a)) => register(a).await,
            Ask::Device(DeviceCommand::Release(a)) => life::release(a).await,
            Ask::Device(DeviceCommand::Quarantine(a)) => quarantine(a).await,
            Ask::Device(DeviceCommand::Retire(a)) => retire(a).await,
            Ask::Why(a) => life::why(a).await,
            Ask::Ledger(a) => life::ledger(a).await,
            Ask::Policy(c) => policy::run(c).await,
            Ask::Exception(c) => life::exception(c).await,
            Ask::Renew(a) => policy::renew(a).await,
            Ask::Drift(a) => life::drift(a).await,
            Ask::Sessions(c) => sessions(c).await,
            Ask::Session(SessionCommand::Open(a)) => open(a).await,
            Ask::Session(SessionCommand::Close(a)) => close(a).await,
            Ask::Counters(a) => counters(a).await,
            Ask::Denials(a) => denials::run(a).await,
            Ask::Explain(a) => explain::run(a).await,
            Ask::Capture(a) => capture::run(a).await,
        }
    })
}

async fn status(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let answer = client.answer(client.inspect().get_status(v1::GetStatusRequest {})).await?;
    print(c, || json::status(&answer), |page| show::status(page, &answer))?;
    Ok(if show::problems(&answer).is_empty() {
        Outcome::Done
    } else {
        Outcome::NotEnforced
    })
}

async fn pools(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let answer = client.answer(client.inspect().list_pools(v1::ListPoolsRequest {})).await?;
    let as_json = || json!({ "pools": answer.pools.iter().map(json::pool).collect::<Vec<_>>() });
    print(c, as_json, |page| show::pools(page, &answer.pools))
}

async fn addresses(a: &AddressesArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::ListAddressesRequest {
        address: a.address.map(|a| a.to_string()).unwrap_or_default(),
        limit: a.limit,
        page_token: String::new(),
    };
    let answer = client.answer(client.inspect().list_addresses(request)).await?;
    let as_json = || json!({ "addresses": answer.addresses.iter().map(json::address).collect::<Vec<_>>() });
    print(&a.connection, as_json, |page| show::addresses(page, &answer.addresses))
}

async fn devices(a: &DevicesArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let mut devices = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListDevicesRequest {
            page_size: PAGE,
            page_token: token.clone(),
            state: a.state.map_or(v1::DeviceState::Unspecified, state_number).into(),
        };
        let page = client.answer(client.devices().list_devices(request)).await?;
        devices.extend(page.devices);
        if page.next_page_token.is_empty() || page.next_page_token == token {
            break;
        }
        token = page.next_page_token;
    }
    let as_json = || json!({ "devices": devices.iter().map(json::device).collect::<Vec<_>>() });
    print(&a.connection, as_json, |page| show::devices(page, &devices))
}

async fn device(a: &DeviceArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::GetDeviceRequest {
        device_id: a.device.to_string(),
    };
    let answer = client.answer(client.devices().get_device(request)).await?;
    let device = answer.device.ok_or(Failure::Answer("device"))?;
    print(&a.connection, || json::device(&device), |page| show::device(page, &device))
}

async fn register(a: &RegisterArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    // A registration replaces the earlier one as a whole; who types one changes what he names. Else a registered certificate, and with it
    // the check of it, would be gone with a change of the owner.
    let held = if a.replace {
        v1::Device::default()
    } else {
        registered(&client, &a.device).await?
    };
    let aliases = held.aliases.unwrap_or_default();
    let given = |list: Vec<String>, held| if list.is_empty() { held } else { list };
    let registration = v1::DeviceRegistration {
        device_id: a.device.to_string(),
        owner: a.owner.clone().unwrap_or(held.owner),
        full_service_pool: a.pool.as_ref().map_or(held.full_service_pool, ToString::to_string),
        aliases: Some(v1::Aliases {
            common_names: given(a.common_name.iter().map(ToString::to_string).collect(), aliases.common_names),
            certificate_sha256: given(
                a.certificate.iter().map(ToString::to_string).collect(),
                aliases.certificate_sha256,
            ),
            vpn_public_keys: given(a.vpn_key.iter().map(ToString::to_string).collect(), aliases.vpn_public_keys),
        }),
        window: if a.not_before.is_some() || a.not_after.is_some() {
            Some(v1::EnrolmentWindow {
                not_before: a.not_before.map(Into::into),
                not_after: a.not_after.map(Into::into),
            })
        } else {
            held.window
        },
    };
    let request = v1::RegisterDevicesRequest {
        context: Some(context(PREFIX)?),
        devices: vec![registration],
    };
    let answer = client.answer(client.devices().register_devices(request)).await?;
    let device = answer.devices.first().ok_or(Failure::Answer("device"))?;
    print(&a.connection, || json::device(device), |page| show::device(page, device))
}

/// The device as the registry has it; an empty one if it has none.
async fn registered(client: &Client, device: &model::DeviceId) -> Result<v1::Device, Failure> {
    let request = v1::GetDeviceRequest {
        device_id: device.to_string(),
    };
    match client.answer(client.devices().get_device(request)).await {
        Ok(answer) => Ok(answer.device.unwrap_or_default()),
        Err(Failure::Refused { reason, .. }) if reason == "UNKNOWN_DEVICE" => Ok(v1::Device::default()),
        Err(e) => Err(e),
    }
}

async fn quarantine(a: &QuarantineArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::ReportPolicyRevokedRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
        reason: a.reason.clone(),
        policy_revision: String::new(),
    };
    let answer = client.answer(client.devices().report_policy_revoked(request)).await?;
    signal(&a.connection, &answer)
}

async fn retire(a: &DeviceArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::RetireDeviceRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
    };
    let answer = client.answer(client.devices().retire_device(request)).await?;
    signal(&a.connection, &answer)
}

pub(super) fn signal(c: &Connection, answer: &v1::SignalResponse) -> Result<Outcome, Failure> {
    let device = answer.device.as_ref().ok_or(Failure::Answer("device"))?;
    let as_json = || {
        json!({
            "request_id": answer.request_id, "device": json::device(device), "enforcement": enforcement_name(answer.enforcement),
            "prefixes": json::prefixes(&answer.prefixes), "store_revision": answer.store_revision, "gateway_uri": answer.gateway_uri,
        })
    };
    print(c, as_json, |page| {
        page.pair("device", &device.device_id);
        page.pair("state", format!("{} ({})", show::state(device.state), device.state_reason));
        page.pair("gateway URI", &answer.gateway_uri);
        show::enforcement(page, answer.enforcement, &answer.prefixes, answer.store_revision);
    })?;
    Ok(outcome(answer.enforcement))
}

async fn sessions(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let mut sessions = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListSessionsRequest {
            page_size: PAGE,
            page_token: token.clone(),
        };
        let page = client.answer(client.sessions().list_sessions(request)).await?;
        sessions.extend(page.sessions);
        if page.next_page_token.is_empty() || page.next_page_token == token {
            break;
        }
        token = page.next_page_token;
    }
    let as_json = || json!({ "sessions": sessions.iter().map(json::session).collect::<Vec<_>>() });
    print(c, as_json, |page| show::sessions(page, &sessions))
}

async fn open(a: &OpenArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let report = v1::SessionReport {
        device_name: a.device.to_string(),
        certificate_sha256: a.certificate.map(|c| c.to_string()).unwrap_or_default(),
        prefixes: a.address.iter().map(|a| Shown(*a).to_string()).collect(),
        interface: a.interface.to_string(),
        vpn_public_key: a.vpn_key.map(|k| k.to_string()).unwrap_or_default(),
    };
    let request = v1::OpenSessionRequest {
        context: Some(context(PREFIX)?),
        source: a.source.to_string(),
        session: Some(report),
    };
    let answer = client.answer(client.sessions().open_session(request)).await?;
    let session = answer.session.as_ref().ok_or(Failure::Answer("session"))?;
    let as_json = || {
        json!({
            "request_id": answer.request_id, "session": json::session(session), "enforcement": enforcement_name(answer.enforcement),
            "prefixes": json::prefixes(&answer.prefixes), "store_revision": answer.store_revision, "gateway_uri": answer.gateway_uri,
        })
    };
    print(&a.connection, as_json, |page| {
        show::sessions(page, std::slice::from_ref(session));
        page.line("");
        page.pair("gateway URI", &answer.gateway_uri);
        show::enforcement(page, answer.enforcement, &answer.prefixes, answer.store_revision);
    })?;
    Ok(outcome(answer.enforcement))
}

async fn close(a: &CloseArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::CloseSessionRequest {
        context: Some(context(PREFIX)?),
        session_id: a.session,
    };
    let answer = client.answer(client.sessions().close_session(request)).await?;
    let as_json = || {
        json!({
            "request_id": answer.request_id, "ended": answer.ended, "enforcement": enforcement_name(answer.enforcement),
            "store_revision": answer.store_revision,
        })
    };
    print(&a.connection, as_json, |page| {
        page.line(if answer.ended {
            format!("session {} ended", a.session)
        } else {
            format!("there is no live session {}; nothing was ended", a.session)
        });
        if answer.ended {
            show::enforcement(page, answer.enforcement, &[], answer.store_revision);
        }
    })?;
    Ok(if answer.ended {
        outcome(answer.enforcement)
    } else {
        Outcome::Done
    })
}

async fn counters(a: &CountersArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::GetCountersRequest {
        pool: a.pool.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let answer = client.answer(client.inspect().get_counters(request)).await?;
    print(
        &a.connection,
        || json::counters(&answer),
        |page| match (a.rules, a.shadow) {
            (true, _) => show::rule_counters(page, &answer),
            (_, true) => show::shadow_counters(page, &answer),
            _ => show::counters(page, &answer),
        },
    )
}

/// Devices or sessions in one answer; the most that the API gives.
pub(super) const PAGE: u32 = 1000;
/// Of request ids.
pub(super) const PREFIX: &str = "cli";

/// The daemon, within the deadline.
pub(super) async fn connect(c: &Connection) -> Result<Client, Failure> {
    let deadline = Duration::from_secs(c.timeout);
    match remote::channel(&c.network, deadline).await? {
        Some((channel, at)) => Ok(Client::over(channel, at, deadline)),
        None => Client::connect(&c.socket, deadline).await,
    }
}

/// Prints an answer as was asked.
pub(super) fn print(
    c: &Connection,
    as_json: impl FnOnce() -> Value,
    as_text: impl FnOnce(&mut Page),
) -> Result<Outcome, Failure> {
    let written = if c.json {
        write_out(&format!("{:#}\n", as_json()))
    } else {
        let mut page = Page::new();
        as_text(&mut page);
        page.print()
    };
    written
        .map(|()| Outcome::Done)
        .map_err(|e| Failure::Local(format!("standard output: {e}")))
}

fn outcome(enforcement: i32) -> Outcome {
    match v1::Enforcement::try_from(enforcement) {
        Ok(v1::Enforcement::Enforced | v1::Enforcement::NoSession) => Outcome::Done,
        _ => Outcome::NotEnforced,
    }
}

pub(super) fn enforcement_name(enforcement: i32) -> &'static str {
    match v1::Enforcement::try_from(enforcement) {
        Ok(v1::Enforcement::Enforced) => "enforced",
        Ok(v1::Enforcement::NoSession) => "no_session",
        Ok(v1::Enforcement::Committed) => "committed",
        Ok(v1::Enforcement::EnforcedNotDurable) => "enforced_not_durable",
        Ok(v1::Enforcement::Unspecified) | Err(_) => "unknown",
    }
}

fn state_number(state: State) -> v1::DeviceState {
    match state {
        State::Registered => v1::DeviceState::Registered,
        State::Quarantined => v1::DeviceState::Quarantined,
        State::PolicyPending => v1::DeviceState::PolicyPending,
        State::Stale => v1::DeviceState::Stale,
        State::Released => v1::DeviceState::Released,
        State::Blocked => v1::DeviceState::Blocked,
        State::Retired => v1::DeviceState::Retired,
    }
}
