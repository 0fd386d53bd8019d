//! From values that were checked to a [`Config`], with the defaults for what was left out.

use std::collections::HashMap;

use super::{
    Allow, Api, Config, InterfaceRule, Log, Paths, Policy, Pool, Route, RouteTable, Rule, Socket, Tables,
    life::RawLife,
    metrics::RawMetrics,
    raw::{RawApi, RawInterface, RawPolicy, RawPool, RawRule, RawSettings, Word},
    read::At,
};
use crate::model::{PoolId, PoolName};

/// `None`: a value that must be there is not.
pub(super) fn config(
    settings: RawSettings,
    life: RawLife,
    api: Option<RawApi>,
    metrics: Option<RawMetrics>,
    interfaces: Vec<RawInterface>,
    pools: Vec<RawPool>,
    policies: Vec<RawPolicy>,
) -> Option<Config> {
    let numbers: HashMap<PoolName, PoolId> = pools
        .iter()
        .zip(1..)
        .map(|(p, number)| Some((p.name.as_ref()?.value.clone(), PoolId(number))))
        .collect::<Option<_>>()?;
    let addresses = or(settings.addresses, Tables::default().addresses);
    let tables = Tables {
        addresses,
        buckets6: or(settings.buckets6, Tables::buckets6_for(addresses)),
        denials_bytes: or(settings.denials_bytes, Tables::default().denials_bytes),
        fragments: or(settings.fragments, Tables::default().fragments),
    };
    let (paths, socket, log) = (Paths::default(), Socket::default(), Log::default());
    let (devices, proofs, sources, keep) = life.build()?;
    Some(Config {
        mode: or(settings.mode, Default::default()),
        paths: Paths {
            state: or(settings.state, paths.state),
            pins: or(settings.pins, paths.pins),
        },
        api: match api {
            Some(raw) => Some(Api {
                user: settings.user.as_ref().map(|u| u.value.clone()),
                ..build_api(raw)?
            }),
            None => None,
        },
        socket: Socket {
            path: or(settings.socket, socket.path),
            vpn_group: settings.vpn_group.map(|g| g.value),
            viewer_group: settings.viewer_group.map(|g| g.value),
        },
        metrics: match metrics {
            Some(raw) => Some(raw.build()?),
            None => None,
        },
        user: settings.user.map(|u| u.value),
        log: Log {
            level: or(settings.level, log.level),
            format: or(settings.format, log.format),
        },
        devices,
        proofs,
        sources,
        keep,
        tables,
        interfaces: interfaces
            .into_iter()
            .map(|i| {
                Some(InterfaceRule {
                    name: i.name?.value,
                    role: i.role?.value,
                    xdp: or(i.xdp, Default::default()),
                    pools: match i.pools {
                        None => None,
                        Some(list) => {
                            let number = |name: At<PoolName>| numbers.get(&name.value).copied();
                            Some(list.value.into_iter().map(number).collect::<Option<_>>()?)
                        }
                    },
                    vlans: i.vlans.into_iter().map(|v| v.value).collect(),
                })
            })
            .collect::<Option<_>>()?,
        pools: pools.into_iter().map(|p| build_pool(p, &numbers)).collect::<Option<_>>()?,
        policies: build_policies(policies)?,
    })
}

fn build_api(raw: RawApi) -> Option<Api> {
    Some(Api {
        listen: raw.listen?.value,
        certificate: raw.certificate?.value,
        key: raw.key?.value,
        user: None,
        client_ca: files(Some(raw.client_ca?)),
        retiring_ca: files(raw.retiring_ca),
        crl: files(raw.crl),
        max_message: or(raw.max_message, Api::MAX_MESSAGE) as usize,
        max_connections: or(raw.max_connections, Api::MAX_CONNECTIONS) as usize,
        max_connections_per_client: or(raw.max_connections_per_client, Api::MAX_CONNECTIONS_PER_CLIENT) as usize,
        max_streams: or(raw.max_streams, Api::MAX_STREAMS),
        handshake_timeout: or(raw.handshake_timeout, Api::HANDSHAKE_TIMEOUT),
        vpn_without_source: or(raw.vpn_without_source, false),
        idle_timeout: or(raw.idle_timeout, Api::IDLE_TIMEOUT),
        renewal_days: or(raw.renewal_days, Api::DAYS),
        warn_days: or(raw.warn_days, Api::DAYS),
    })
}

fn build_pool(raw: RawPool, numbers: &HashMap<PoolName, PoolId>) -> Option<Pool> {
    let name = raw.name?.value;
    let routes = raw
        .routes
        .into_iter()
        .map(|r| {
            Some(Route {
                to: r.to?.value,
                via: r.via.map(|v| v.value),
                interface: r.interface.map(|i| i.value),
            })
        })
        .collect::<Option<Vec<Route>>>()?;
    Some(Pool {
        id: *numbers.get(&name)?,
        name,
        kind: raw.kind?.value,
        prefixes: raw.prefixes.into_iter().map(|p| p.value).collect(),
        reserved: raw.reserved.into_iter().map(|r| r.value).collect(),
        policy: raw.policy?.value,
        shadow_policy: raw.shadow_policy.map(|p| p.value),
        deny: or(raw.deny, Default::default()),
        fallback: match raw.fallback {
            Some(fallback) => Some(*numbers.get(&fallback.value)?),
            None => None,
        },
        gateway_uri: raw.gateway_uri?.value.into(),
        lease: raw.lease.map(|l| l.value),
        min_trust: or(raw.min_trust, Default::default()),
        table: raw.table.map(|t| RouteTable { number: t.value, routes }),
    })
}

fn build_policies(policies: Vec<RawPolicy>) -> Option<Vec<Policy>> {
    let mut ids = 1..=u16::MAX;
    let mut built = Vec::new();
    for policy in policies {
        let allow = match policy.allow {
            Some(At { value: Word::All, .. }) => Allow::All,
            Some(At {
                value: Word::Nothing, ..
            }) => Allow::Nothing,
            None => {
                let rule = |r: RawRule| {
                    Some(Rule {
                        id: ids.next()?,
                        direction: r.direction,
                        peers: r.peers,
                        protocol: r.protocol?,
                        ports: r.ports,
                    })
                };
                Allow::Rules(policy.rules.into_iter().map(rule).collect::<Option<_>>()?)
            }
        };
        built.push(Policy {
            name: policy.name?.value,
            allow,
        });
    }
    Some(built)
}

fn files(raw: Option<At<Vec<At<std::path::PathBuf>>>>) -> Vec<std::path::PathBuf> {
    raw.map_or_else(Vec::new, |list| list.value.into_iter().map(|file| file.value).collect())
}

fn or<T>(value: Option<At<T>>, default: T) -> T {
    value.map_or(default, |v| v.value)
}
