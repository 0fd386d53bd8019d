//! THE table: RPC by role. What is not in it is denied. Pure.

use crate::model::Role::{self, Mdm, Operator, Viewer, Vpn};

/// One RPC with the roles that may call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// As in HTTP/2's `:path`: `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub roles: &'static [Role],
    /// It restricts: it never waits behind calls that do not.
    pub restricts: bool,
    /// Its answer is a stream.
    pub streams: bool,
}

impl Rpc {
    /// Its method's name alone.
    #[must_use]
    pub fn method(&self) -> &'static str {
        method(self.path)
    }
}

/// The last part of a path.
#[must_use]
pub fn method(path: &'static str) -> &'static str {
    path.rsplit('/').next().unwrap_or(path)
}

const fn rpc(path: &'static str, roles: &'static [Role]) -> Rpc {
    Rpc {
        path,
        roles,
        restricts: false,
        streams: false,
    }
}
const fn restriction(path: &'static str, roles: &'static [Role]) -> Rpc {
    Rpc {
        restricts: true,
        ..rpc(path, roles)
    }
}
const fn stream(of: Rpc) -> Rpc {
    Rpc { streams: true, ..of }
}

/// What a release stands on. An operator releases by an exception, with a reason and an end.
const PROOF: &[Role] = &[Mdm];
const MDM: &[Role] = &[Mdm, Operator];
const VPN: &[Role] = &[Vpn, Operator];
const DEVICE_READS: &[Role] = &[Mdm, Operator, Viewer];
const SESSION_READS: &[Role] = &[Vpn, Operator, Viewer];
const STATUS: &[Role] = &[Vpn, Operator, Viewer];
const READS: &[Role] = &[Operator, Viewer];
const OPERATOR: &[Role] = &[Operator];
const ALL: &[Role] = &[Mdm, Vpn, Operator, Viewer];

/// Every RPC that is served, in the order of the .proto files; health and reflection last.
pub const TABLE: &[Rpc] = &[
    rpc("/lazaret.v1.AccessService/GetAccess", READS),
    rpc("/lazaret.v1.AccessService/FinishRetirement", OPERATOR),
    rpc("/lazaret.v1.DeviceService/RegisterDevices", MDM),
    rpc("/lazaret.v1.DeviceService/ReportPolicyApplied", PROOF),
    restriction("/lazaret.v1.DeviceService/ReportPolicyRevoked", MDM),
    restriction("/lazaret.v1.DeviceService/RetireDevice", MDM),
    rpc("/lazaret.v1.DeviceService/GetDevice", DEVICE_READS),
    rpc("/lazaret.v1.DeviceService/ListDevices", DEVICE_READS),
    stream(rpc("/lazaret.v1.DeviceService/WatchGatewayUris", DEVICE_READS)),
    rpc("/lazaret.v1.DeviceService/ExplainDevice", DEVICE_READS),
    rpc("/lazaret.v1.DeviceService/GetLedger", DEVICE_READS),
    rpc("/lazaret.v1.DeviceService/ListLedgerEntries", DEVICE_READS),
    rpc("/lazaret.v1.InspectService/GetStatus", STATUS),
    rpc("/lazaret.v1.InspectService/ListPools", READS),
    rpc("/lazaret.v1.InspectService/ListAddresses", READS),
    rpc("/lazaret.v1.InspectService/GetCounters", READS),
    rpc("/lazaret.v1.InspectService/ListDenials", READS),
    stream(rpc("/lazaret.v1.InspectService/WatchDenials", READS)),
    rpc("/lazaret.v1.InspectService/Explain", READS),
    // It shows what packets hold.
    stream(rpc("/lazaret.v1.InspectService/CaptureDenied", OPERATOR)),
    // Both carry restrictions, too.
    restriction("/lazaret.v1.OperatorService/GrantException", OPERATOR),
    restriction("/lazaret.v1.OperatorService/EndException", OPERATOR),
    rpc("/lazaret.v1.OperatorService/GetDrift", READS),
    // It repairs.
    rpc("/lazaret.v1.OperatorService/CheckDrift", OPERATOR),
    rpc("/lazaret.v1.OperatorService/ListAuditEntries", READS),
    rpc("/lazaret.v1.OperatorService/GetAuditEntry", READS),
    rpc("/lazaret.v1.OperatorService/GetRefusal", READS),
    rpc("/lazaret.v1.OperatorService/GetAuditHead", READS),
    rpc("/lazaret.v1.PolicyService/OfferPolicy", PROOF),
    rpc("/lazaret.v1.PolicyService/AcknowledgePolicy", PROOF),
    rpc("/lazaret.v1.PolicyService/RenewLeases", PROOF),
    // It carries restrictions, too.
    stream(restriction("/lazaret.v1.PolicyService/ReportPolicy", PROOF)),
    rpc("/lazaret.v1.PolicyService/PublishPolicyRevision", MDM),
    rpc("/lazaret.v1.PolicyService/PausePublication", MDM),
    rpc("/lazaret.v1.PolicyService/ResumePublication", MDM),
    rpc("/lazaret.v1.PolicyService/GetPublication", DEVICE_READS),
    stream(rpc("/lazaret.v1.PolicyService/WatchPublication", DEVICE_READS)),
    rpc("/lazaret.v1.SessionService/OpenSession", VPN),
    restriction("/lazaret.v1.SessionService/CloseSession", VPN),
    rpc("/lazaret.v1.SessionService/SynchroniseSessions", VPN),
    rpc("/lazaret.v1.SessionService/ListSessions", SESSION_READS),
    rpc("/grpc.health.v1.Health/Check", ALL),
    stream(rpc("/grpc.health.v1.Health/Watch", ALL)),
    stream(rpc("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ALL)),
    stream(rpc("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ALL)),
];

/// The RPC at `path`, if the role may call it. The path is compared as it came: no other spelling is the same RPC.
#[must_use]
pub fn allowed(path: &str, role: Role) -> Option<&'static Rpc> {
    TABLE.iter().find(|rpc| rpc.path == path && rpc.roles.contains(&role))
}

/// The roles that may call the RPC at `path`, as words.
#[must_use]
pub fn may_call(path: &str) -> String {
    let roles = TABLE.iter().find(|rpc| rpc.path == path).map_or(&[][..], |rpc| rpc.roles);
    roles.iter().map(|r| name(*r)).collect::<Vec<_>>().join(", ")
}

/// Whether there is an RPC at `path` at all.
#[must_use]
pub fn known(path: &str) -> bool {
    TABLE.iter().any(|rpc| rpc.path == path)
}

/// A role by name, as certificates, configuration and CLI write it.
#[must_use]
pub fn by_name(name: &str) -> Option<Role> {
    ALL.iter().copied().find(|r| self::name(*r) == name)
}

/// Its name.
#[must_use]
pub const fn name(role: Role) -> &'static str {
    role.name()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_table_has_exactly_the_rpcs_of_the_api() {
        let set = FileDescriptorSet::decode(lazaret_proto::DESCRIPTORS).unwrap();
        let described: BTreeSet<String> = set
            .file
            .iter()
            .flat_map(|f| f.service.iter().map(move |s| (f.package(), s)))
            .flat_map(|(package, s)| s.method.iter().map(move |m| format!("/{package}.{}/{}", s.name(), m.name())))
            .collect();
        let own: Vec<&str> = TABLE.iter().map(|r| r.path).filter(|p| p.starts_with("/lazaret.")).collect();
        assert_eq!(own.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), described);
        let all: BTreeSet<&str> = TABLE.iter().map(|r| r.path).collect();
        assert_eq!(all.len(), TABLE.len(), "no RPC stands twice");
        let methods = set.file.iter().flat_map(|f| &f.service).flat_map(|s| &s.method);
        let streams: BTreeSet<&str> = methods.filter(|m| m.server_streaming()).map(|m| m.name()).collect();
        for rpc in TABLE.iter().filter(|r| r.path.starts_with("/lazaret.")) {
            assert_eq!(rpc.streams, streams.contains(rpc.method()), "{}", rpc.path);
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_denied() {
        for path in [
            "",
            "/",
            "/lazaret.v1.DeviceService/",
            "/lazaret.v1.DeviceService/getDevice",
            "/lazaret.v1.DeviceService/GetDevice/",
            "//lazaret.v1.DeviceService/GetDevice",
            "/lazaret.v1.DeviceService/Get%44evice",
            "/lazaret.v2.DeviceService/GetDevice",
        ] {
            assert!(ALL.iter().all(|r| allowed(path, *r).is_none()), "{path:?}");
        }
    }

    #[test]
    fn an_operator_may_everything_but_prove_and_a_viewer_changes_nothing() {
        let proof = [
            "ReportPolicyApplied",
            "OfferPolicy",
            "AcknowledgePolicy",
            "RenewLeases",
            "ReportPolicy",
        ];
        for rpc in TABLE {
            let proves = proof.contains(&rpc.method());
            assert_eq!(rpc.roles.contains(&Operator), !proves, "{}", rpc.path);
            assert!(!proves || rpc.roles == [Mdm], "{}", rpc.path);
            let method = rpc.path.rsplit('/').next().unwrap();
            let reads = ["Get", "List", "Watch", "Explain", "ServerReflectionInfo"]
                .iter()
                .any(|p| method.starts_with(p));
            assert!(
                reads || rpc.path == "/grpc.health.v1.Health/Check" || !rpc.roles.contains(&Viewer),
                "{}",
                rpc.path
            );
        }
    }

    #[test]
    fn what_restricts_or_may_has_places_of_its_own() {
        let restricting: Vec<&str> = TABLE.iter().filter(|r| r.restricts).map(Rpc::method).collect();
        let expected = [
            "ReportPolicyRevoked",
            "RetireDevice",
            "GrantException",
            "EndException",
            "ReportPolicy",
            "CloseSession",
        ];
        assert_eq!(restricting, expected);
    }

    #[test]
    fn exceptions_are_for_operators_alone() {
        for rpc in TABLE
            .iter()
            .filter(|r| r.path.ends_with("Exception") || r.path.ends_with("/CheckDrift"))
        {
            assert_eq!(rpc.roles, [Operator], "{}", rpc.path);
        }
    }

    #[test]
    fn names_lead_back() {
        assert!(ALL.iter().all(|r| by_name(name(*r)) == Some(*r)));
        assert_eq!(by_name("Operator"), None);
        assert_eq!(by_name(""), None);
    }
}
