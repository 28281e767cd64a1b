//! What the simulator found in the engine, each as the shortest story that shows it.

use loom_core::{
    AgentSpec, Core, Delivery, EffectClass, Handle, Health, Limits, Moment, Nanos, Notice, Offer,
    Options,
};
use loom_core::{Invoke, ProviderSpec, Publish, Qos, Request, Result, SessionId};
use loom_sim::{Setup, simulate};

const NOW: Moment = Moment {
    now: Nanos(1_000_000),
    wall_ms: 1_800_000_000_000,
};

/// Seeds that failed once, for the engine's sake or the simulator's.
const KEPT: &[u64] = &[
    1, 4, 10, 18, 71, 122, 303, 357, 590, 982, 1_475, 2_549, 4_711, 5_665, 7_627, 6_365, 6_555,
    1_465, 7_856, 8_429, 11_359, 138_708, 401_098, 1_000_003, 7_777_777,
];

struct Bus {
    core: Core,
    session: SessionId,
}

impl Bus {
    fn new(queue_items: usize) -> Result<Self> {
        let limits = Limits {
            queue_items,
            ..Limits::default()
        };
        let mut core = Core::new(limits, 7);
        let session = core.attach("demo", "app")?;
        Ok(Self { core, session })
    }

    fn agent(&mut self, name: &str, group: &str, filters: &[&str]) -> Result<Handle> {
        let spec = AgentSpec {
            name,
            filters,
            group,
            concurrency: 8,
            qos: Qos::Batched,
            info: b"{}",
            start: loom_core::Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        self.core.register(self.session, &spec, NOW)
    }

    fn event(&self, topic: &'static str, key: &str) -> Result<Publish<'static>> {
        let options = Options {
            key: Some(key.to_owned()),
            ..Options::default()
        };
        Ok(Publish {
            sender: self.core.root(self.session)?,
            turn: None,
            topic,
            payload: Box::default(),
            qos: Qos::Batched,
            options: Some(Box::new(options)),
            ack: None,
            eager: false,
        })
    }

    fn offer(&mut self, topic: &'static str, key: &str) -> Result<Offer> {
        let event = self.event(topic, key)?;
        self.core.offer(self.session, event, NOW)
    }

    fn take(&mut self, handle: Handle) -> Result<Option<Delivery>> {
        self.core.take(self.session, handle, None, NOW)
    }

    /// How many events a member is given when it ends each turn at once.
    fn count(&mut self, handle: Handle) -> Result<usize> {
        let mut count = 0;
        let mut next = self.take(handle)?;
        while let Some(delivery) = next {
            count += 1;
            next = self.core.take(self.session, handle, delivery.lease, NOW)?;
        }
        Ok(count)
    }
}

// requirement: LANE-GROUP
#[test]
fn a_key_stays_with_the_member_that_a_parked_event_is_meant_for() -> Result<()> {
    let mut bus = Bus::new(1)?;
    let slow = bus.agent("slow", "", &["a"])?;
    let members = [
        bus.agent("one", "g", &["a", "b"])?,
        bus.agent("two", "g", &["a", "b"])?,
    ];
    bus.offer("a", "first")?;
    bus.count(members[0])?;
    assert!(matches!(bus.offer("a", "k")?, Offer::Parked(_)));
    bus.offer("b", "k")?;
    bus.count(slow)?;
    let counts = [bus.count(members[0])?, bus.count(members[1])?];
    assert!(counts == [2, 0] || counts == [0, 2], "{counts:?}");
    Ok(())
}

// requirement: REQUEST-DECLINED
#[test]
fn a_stream_that_goes_while_a_request_waits_for_room_declines_nothing() -> Result<()> {
    let mut bus = Bus::new(1)?;
    let agent = bus.agent("agent", "", &["a"])?;
    let stream = bus.core.subscribe(bus.session, &["a"], Qos::Realtime)?;
    bus.offer("a", "first")?;
    let request = Request {
        publish: bus.event("a", "k")?,
        timeout_ms: 100,
        first_k: 1,
        wait: false,
    };
    bus.core.request(bus.session, request, NOW)?;
    bus.core.remove(bus.session, stream, NOW)?;
    let first = bus.take(agent)?;
    assert!(bus.take(agent)?.is_some_and(|delivery| delivery.asked));
    assert!(first.is_some());
    let notices = bus.core.drain(bus.session, 16)?;
    let ended = notices
        .iter()
        .any(|notice| matches!(notice, Notice::Outcome(..)));
    assert!(!ended, "the agent that was asked is at work: {notices:?}");
    Ok(())
}

// requirement: WAKE-LOOP
#[test]
fn a_call_that_waits_is_announced_when_another_handle_ends_the_one_before() -> Result<()> {
    let mut bus = Bus::new(8)?;
    let agent = bus.agent("agent", "", &["a"])?;
    let spec = ProviderSpec {
        name: "look",
        version: "1",
        effect: EffectClass::Pure,
        probes: false,
        provider: "app",
        concurrency: 1,
        info: b"{}",
    };
    let provider = bus.core.provide(bus.session, &spec, NOW)?;
    for _ in 0..2 {
        let invoke = Invoke {
            sender: bus.core.root(bus.session)?,
            turn: None,
            capability: "look",
            version: None,
            payload: Box::default(),
            timeout_ms: 100,
            key: None,
            credit: 0,
        };
        bus.core.call(bus.session, invoke, NOW)?;
    }
    let first = bus.take(provider)?.and_then(|delivery| delivery.lease);
    assert!(bus.take(provider)?.is_none());
    bus.core.drain(bus.session, 16)?;
    bus.core.take(bus.session, agent, first, NOW)?;
    let notices = bus.core.drain(bus.session, 16)?;
    let told = |notice: &Notice| matches!(notice, Notice::Ready(handle) if *handle == provider);
    assert!(notices.iter().any(told), "{notices:?}");
    Ok(())
}

/// A moment so many milliseconds after the first.
fn later(millis: u64) -> Moment {
    Moment {
        now: NOW.now.plus_millis(millis),
        ..NOW
    }
}

// requirement: LANE-FAIR
#[test]
fn an_event_that_is_over_does_not_cost_its_lane_its_place() -> Result<()> {
    let mut bus = Bus::new(8)?;
    let agent = bus.agent("agent", "", &["a"])?;
    let mut short = bus.event("a", "first")?;
    if let Some(options) = &mut short.options {
        options.ttl_ms = Some(1);
    }
    bus.core.offer(bus.session, short, NOW)?;
    bus.offer("a", "first")?;
    bus.offer("a", "second")?;
    let given = bus.core.take(bus.session, agent, None, later(5))?;
    let lane = given.map(|delivery| delivery.envelope.lane().to_string());
    assert_eq!(lane.as_deref(), Some("first"));
    Ok(())
}

// requirement: QOS-BATCHED, HEALTH-QUARANTINED
#[test]
fn an_offer_waits_for_an_agent_that_was_quarantined_meanwhile_and_goes_when_it_has_room()
-> Result<()> {
    let mut bus = Bus::new(1)?;
    let (one, other) = (
        bus.agent("one", "", &["a", "x"])?,
        bus.agent("other", "", &["a"])?,
    );
    bus.offer("a", "k")?;
    assert!(matches!(bus.offer("a", "k")?, Offer::Parked(_)));
    for state in [Health::Quarantined, Health::Up] {
        bus.core.set_state(bus.session, one, state, NOW)?;
    }
    bus.offer("x", "k")?;
    bus.take(other)?;
    bus.take(one)?;
    let notices = bus.core.drain(bus.session, 16)?;
    let taken = notices
        .iter()
        .any(|notice| matches!(notice, Notice::Accepted(..)));
    assert!(taken, "both have room: {notices:?}");
    Ok(())
}

// requirement: SIM-DETERMINISTIC
#[test]
fn seeds_that_failed_once_keep_every_promise() {
    for seed in KEPT {
        assert_eq!(
            simulate(*seed, Setup::default()).violation,
            None,
            "seed {seed}"
        );
    }
}
