//! Greedy merging of neighbouring symbols, which both kinds of tokenizer share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Splits `text` into characters and joins neighbours, those of the lowest key first and the leftmost of equals, until
/// `key` wants no pair any more. The symbols that are left.
pub fn merge<K: Ord>(text: &str, key: impl Fn(&str, &str) -> Option<K>) -> Vec<&str> {
    let starts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
    let n = starts.len();
    // Symbol i is text[starts[i]..end[i]]; `end` 0 marks one that was merged away.
    let mut end: Vec<usize> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    let mut next: Vec<usize> = (1..=n).collect();
    let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
    let mut heap = BinaryHeap::new();
    let propose = |heap: &mut BinaryHeap<_>, end: &[usize], i: usize, j: usize| {
        if let Some(key) = key(&text[starts[i]..end[i]], &text[starts[j]..end[j]]) {
            heap.push(Reverse((key, i, j, end[j])));
        }
    };
    (1..n).for_each(|j| propose(&mut heap, &end, j - 1, j));
    while let Some(Reverse((_, i, j, stop))) = heap.pop() {
        // Either side may have grown or gone since the pair was proposed.
        if end[i] != starts[j] || end[j] != stop {
            continue;
        }
        (end[i], end[j]) = (stop, 0);
        next[i] = next[j];
        if next[i] < n {
            previous[next[i]] = i;
            propose(&mut heap, &end, i, next[i]);
        }
        if previous[i] < n {
            propose(&mut heap, &end, previous[i], i);
        }
    }
    let mut out = Vec::new();
    let mut i = 0;
    while i < n {
        out.push(&text[starts[i]..end[i]]);
        i = next[i];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_keys_first_then_the_leftmost() {
        let key = |a: &str, b: &str| match (a, b) {
            ("b", "c") => Some(0),
            ("a", "a") => Some(1),
            ("aa", "bc") => Some(2),
            _ => None,
        };
        assert_eq!(merge("aaabcaa", key), ["aa", "a", "bc", "aa"]);
        assert_eq!(merge("aabc", key), ["aabc"]);
        assert!(merge("", key).is_empty());
    }
}
