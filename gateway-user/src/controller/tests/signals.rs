//! Signals about devices.

use super::kit::*;
use crate::{controller::Enforcement, kernel::fake::Call, model::DeviceState};

#[tokio::test]
async fn a_release_is_committed_before_the_kernel_knows_it() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let opened = g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    assert_eq!(opened.enforcement, Enforcement::Enforced);
    assert_eq!(opened.session.current_pool, QUARANTINE);
    assert_eq!(opened.gateway_uri, "quarantine.vpn.example");
    g.kernel.take_calls();

    let released = g.applied("phone").await.unwrap();
    assert_eq!(released.enforcement, Enforcement::Enforced);
    assert_eq!(released.device.device.state, DeviceState::Released);
    assert_eq!(released.device.device.gateway_uri, "office.vpn.example");
    assert_eq!(released.addresses.len(), 2);
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (OFFICE, OFFICE));
    let calls = g.kernel.take_calls();
    let first = calls.iter().position(|c| matches!(c, Call::Note("committed"))).unwrap();
    let kernel: Vec<_> = calls
        .iter()
        .enumerate()
        .filter(|(_, c)| matches!(c, Call::Assign(..)))
        .collect();
    assert_eq!(kernel.len(), 2);
    assert!(kernel.iter().all(|(i, _)| *i > first), "{calls:?}");
}
