//! Filters to subscriptions. A match walks only branches that the topic can take, so filters that
//! do not match cost nothing.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::arena::SubId;
use crate::topic::Filter;

const ROOT: u32 = 0;

#[derive(Default)]
struct Node {
    children: FxHashMap<Box<str>, u32>,
    star: Option<u32>,
    here: Vec<SubId>,
    tail: Vec<SubId>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.star.is_none()
            && self.here.is_empty()
            && self.tail.is_empty()
    }
}

/// The filters of one namespace.
pub(crate) struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

impl Trie {
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
        }
    }

    fn node(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(at as usize)
    }

    fn grow(&mut self) -> u32 {
        if let Some(at) = self.free.pop() {
            return at;
        }
        self.nodes.push(Node::default());
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn child(&mut self, at: u32, token: &str) -> u32 {
        let known = self.nodes.get(at as usize).and_then(|node| match token {
            "*" => node.star,
            token => node.children.get(token).copied(),
        });
        if let Some(next) = known {
            return next;
        }
        let next = self.grow();
        if let Some(node) = self.node(at) {
            if token == "*" {
                node.star = Some(next);
            } else {
                node.children.insert(token.into(), next);
            }
        }
        next
    }

    pub(crate) fn insert(&mut self, filter: &Filter, sub: SubId) {
        let mut at = ROOT;
        for token in filter.tokens() {
            if token == ">" {
                if let Some(node) = self.node(at) {
                    node.tail.push(sub);
                }
                return;
            }
            at = self.child(at, token);
        }
        if let Some(node) = self.node(at) {
            node.here.push(sub);
        }
    }

    pub(crate) fn remove(&mut self, filter: &Filter, sub: SubId) {
        let mut path: SmallVec<[(u32, &str); 16]> = SmallVec::new();
        let mut at = ROOT;
        let mut tail = false;
        for token in filter.tokens() {
            if token == ">" {
                tail = true;
                break;
            }
            let Some(node) = self.nodes.get(at as usize) else {
                return;
            };
            let next = if token == "*" {
                node.star
            } else {
                node.children.get(token).copied()
            };
            let Some(next) = next else { return };
            path.push((at, token));
            at = next;
        }
        if let Some(node) = self.node(at) {
            let subs = if tail { &mut node.tail } else { &mut node.here };
            if let Some(found) = subs.iter().position(|other| *other == sub) {
                subs.remove(found);
            }
        }
        self.prune(at, &path);
    }

    fn prune(&mut self, mut at: u32, path: &[(u32, &str)]) {
        for (parent, token) in path.iter().rev() {
            if !self.nodes.get(at as usize).is_some_and(Node::is_empty) {
                return;
            }
            self.free.push(at);
            if let Some(node) = self.node(*parent) {
                if *token == "*" {
                    node.star = None;
                } else {
                    node.children.remove(*token);
                }
            }
            at = *parent;
        }
    }

    /// Whether a topic that starts with this token could have a subscriber at all.
    pub(crate) fn may_start(&self, token: &str) -> bool {
        self.nodes.first().is_some_and(|root| {
            root.star.is_some() || !root.tail.is_empty() || root.children.contains_key(token)
        })
    }

    /// All subscriptions with a filter that matches: each once, in the order of their ids.
    pub(crate) fn find(&self, topic: &str) -> Vec<SubId> {
        self.find_counted(topic).0
    }

    /// Also says how many nodes were visited, which is what matching costs.
    fn find_counted(&self, topic: &str) -> (Vec<SubId>, usize) {
        let tokens: SmallVec<[&str; 16]> = topic.split('.').collect();
        let mut found = Vec::new();
        let visited = self.walk(ROOT, &tokens, &mut found);
        found.sort_unstable();
        found.dedup();
        (found, visited)
    }

    fn walk(&self, at: u32, tokens: &[&str], found: &mut Vec<SubId>) -> usize {
        let Some(node) = self.nodes.get(at as usize) else {
            return 0;
        };
        let Some((token, rest)) = tokens.split_first() else {
            found.extend_from_slice(&node.here);
            return 1;
        };
        found.extend_from_slice(&node.tail);
        let mut visited = 1;
        if let Some(next) = node.children.get(*token) {
            visited += self.walk(*next, rest, found);
        }
        if let Some(next) = node.star {
            visited += self.walk(next, rest, found);
        }
        visited
    }

    #[cfg(test)]
    fn size(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use proptest::prelude::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text, &Limits::default()).unwrap()
    }

    #[test]
    fn a_subscription_with_two_matching_filters_is_found_once() {
        let mut trie = Trie::new();
        trie.insert(&filter("a.*"), SubId(1));
        trie.insert(&filter("a.>"), SubId(1));
        assert_eq!(trie.find("a.b"), vec![SubId(1)]);
    }

    // requirement: TOPIC-COST
    #[test]
    fn ten_thousand_filters_that_do_not_match_cost_no_visit_more() {
        let mut trie = Trie::new();
        for text in ["order.*.paid", "order.>", "*.eu.paid"] {
            trie.insert(&filter(text), SubId(1));
        }
        let before = trie.find_counted("order.eu.paid");
        for n in 0..10_000 {
            trie.insert(&filter(&format!("order.eu{n}.>")), SubId(2));
            trie.insert(&filter(&format!("other{n}.*.paid")), SubId(2));
        }
        assert_eq!(trie.find_counted("order.eu.paid"), before);
    }

    #[test]
    fn what_is_removed_leaves_no_node_behind() {
        let mut trie = Trie::new();
        for text in ["a.b.c", "a.*.>", ">", "x.*"] {
            trie.insert(&filter(text), SubId(1));
        }
        for text in ["a.*.>", "x.*", ">", "a.b.c"] {
            trie.remove(&filter(text), SubId(1));
        }
        assert_eq!(trie.size(), 1);
        assert!(!trie.may_start("a"));
    }

    fn token() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just("c")]
    }

    fn any_filter() -> impl Strategy<Value = String> {
        let part = prop_oneof![3 => token(), 1 => Just("*")];
        (proptest::collection::vec(part, 0..4), any::<bool>()).prop_map(|(mut parts, tail)| {
            if tail || parts.is_empty() {
                parts.push(">");
            }
            parts.join(".")
        })
    }

    proptest! {
        // requirement: TOPIC-MATCH
        #[test]
        fn the_trie_agrees_with_matching_one_by_one(
            filters in proptest::collection::vec(any_filter(), 0..24),
            gone in proptest::collection::vec(any::<bool>(), 24),
            topics in proptest::collection::vec(proptest::collection::vec(token(), 1..5), 1..16),
        ) {
            let filters: Vec<Filter> = filters.iter().map(|text| filter(text)).collect();
            let mut trie = Trie::new();
            for (at, filter) in filters.iter().enumerate() {
                trie.insert(filter, SubId(at as u64));
            }
            for (at, filter) in filters.iter().enumerate().filter(|(at, _)| gone[*at]) {
                trie.remove(filter, SubId(at as u64));
            }
            for topic in topics {
                let topic = topic.join(".");
                let expected: Vec<SubId> = filters.iter().enumerate()
                    .filter(|(at, filter)| !gone[*at] && filter.matches(&topic))
                    .map(|(at, _)| SubId(at as u64)).collect();
                prop_assert_eq!(trie.find(&topic), expected);
            }
        }
    }
}
