//! A gRPC client that is not ours: Python's grpcio with code that it generates from the .proto files alone, over mTLS.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::Path;

use lazaret_tests::{desk::Desk, process, require, require::python};

#[test]
fn pythons_grpcio_registers_releases_revokes_and_watches() {
    require!(Root, Bpf, Python);
    let Desk { local, gateway, site } = Desk::new(|_| Ok(())).unwrap();
    local.register("tablet", "staff").unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut client = site.core.command(python().unwrap());
    client
        .arg(here.join("tests/python/client.py"))
        .arg(here.join("../proto"))
        .arg(gateway.folder());
    let said = process::output(&mut client).unwrap();
    assert!(said.lines().any(|line| line == "all held"), "{said}");
    // What the guide for MDM developers shows.
    let folder = gateway.folder();
    let mut guide = site.core.command(python().unwrap());
    guide
        .arg(here.join("../docs/examples/mdm.py"))
        .args(["10.9.0.1:9443", "gw.example.test"])
        .args(["ca.pem", "mdm.pem", "mdm.key"].map(|name| folder.join(name)))
        .arg(here.join("../proto"));
    let said = process::output(&mut guide).unwrap();
    assert!(said.lines().any(|line| line == "all held"), "{said}");
    // What it did is what others see.
    let device = local.device("from-python").unwrap();
    assert_eq!(
        (device.state(), device.gateway_uri.as_str()),
        (lazaret_proto::v1::DeviceState::Quarantined, "enrol.vpn.example.test")
    );
}
