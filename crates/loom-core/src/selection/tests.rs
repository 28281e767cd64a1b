use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn table(weights: &[u32]) -> Table {
    let named = weights.iter().enumerate();
    Table {
        weights: named.map(|(at, weight)| (name(at), *weight)).collect(),
        saved: BTreeMap::new(),
    }
}

fn name(at: usize) -> Arc<str> {
    format!("p{at}").into()
}

// requirement: CALL-WEIGHTS
#[test]
fn turns_are_spread_as_nginx_spreads_them() {
    let mut table = table(&[5_000, 1_000, 1_000]);
    let names: Vec<Arc<str>> = (0..3).map(name).collect();
    let turns: Vec<Arc<str>> = (0..7).map(|_| table.next(names.iter()).unwrap()).collect();
    let expected = ["p0", "p0", "p1", "p0", "p2", "p0", "p0"];
    assert!(turns.iter().map(|turn| &**turn).eq(expected), "{turns:?}");
}

proptest! {
    // requirement: CALL-WEIGHTS
    #[test]
    fn over_a_whole_round_each_has_as_many_turns_as_its_weight(weights in proptest::collection::vec(1u32..12, 1..6)) {
        let mut table = table(&weights);
        let names: Vec<Arc<str>> = (0..weights.len()).map(name).collect();
        let round: u32 = weights.iter().sum();
        let mut turns = vec![0; weights.len()];
        for _ in 0..round {
            let turn = table.next(names.iter()).unwrap();
            turns[names.iter().position(|name| *name == turn).unwrap()] += 1;
        }
        prop_assert_eq!(turns, weights);
        prop_assert!(table.saved.values().all(|saved| *saved == 0));
    }

    // requirement: CALL-WEIGHTS
    #[test]
    fn a_table_does_what_its_model_does_while_providers_come_and_go(
        weights in proptest::collection::vec(0u32..5, 5),
        rounds in proptest::collection::vec(proptest::collection::btree_set(0usize..5, 0..5), 0..60),
    ) {
        let mut table = table(&weights);
        let mut saved: BTreeMap<usize, i64> = BTreeMap::new();
        for usable in rounds {
            let names: Vec<Arc<str>> = usable.iter().map(|at| name(*at)).collect();
            let turn = table.next(names.iter().chain(&names));
            prop_assert_eq!(turn, model(&weights, &usable, &mut saved).map(name));
        }
    }
}

/// Smooth weighted round robin, written down by its definition.
fn model(
    weights: &[u32],
    usable: &BTreeSet<usize>,
    saved: &mut BTreeMap<usize, i64>,
) -> Option<usize> {
    saved.retain(|at, _| usable.contains(at));
    let total: i64 = usable.iter().map(|at| i64::from(weights[*at])).sum();
    let mut best: Option<(usize, i64)> = None;
    for at in usable {
        let now = saved.entry(*at).or_insert(0);
        *now += i64::from(weights[*at]);
        if best.is_none_or(|(_, most)| *now > most) {
            best = Some((*at, *now));
        }
    }
    let (at, _) = best?;
    *saved.entry(at).or_insert(0) -= total;
    Some(at)
}
