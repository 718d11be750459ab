//! Rules of the user for single tensors: `REGEX=ACTION`, the last rule that matches a name wins.

use super::{check_bpw, check_rank};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, encode};
use fancy_regex::Regex;
use std::path::Path;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleAction {
    /// `bpw:B`: the largest rank within B bits per weight of the matrix, outside the common budget's level.
    Bpw(f64),
    /// `rank:R`: this rank.
    Rank(usize),
    /// `keep`: not factorized, type as in the source.
    Keep,
    /// `type:T`: not factorized, stored as T.
    Type(GgmlType),
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    text: String,
    regex: Regex,
    /// What it does.
    pub action: RuleAction,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: String| Error::usage(format!("tensor rule '{text}': {what}"));
        let (pattern, action) = text.rsplit_once('=').ok_or_else(|| {
            wrong("it must be REGEX=ACTION with bpw:B, rank:R, keep or type:T as its action".into())
        })?;
        let regex = Regex::new(pattern).map_err(|e| wrong(e.to_string()))?;
        let action = match action.split_once(':') {
            None if action == "keep" => RuleAction::Keep,
            Some(("bpw", b)) => {
                let bpw = b.parse().map_err(|_| wrong(format!("'{b}' is not a number")))?;
                check_bpw(bpw).map_err(|e| wrong(e.to_string()))?;
                RuleAction::Bpw(bpw)
            }
            Some(("rank", r)) => {
                let rank = r.parse().map_err(|_| wrong(format!("'{r}' is not a whole number")))?;
                check_rank(rank).map_err(|e| wrong(e.to_string()))?;
                RuleAction::Rank(rank)
            }
            Some(("type", t)) => {
                let refused = |what| wrong(format!("type '{t}' cannot be written; {what}"));
                RuleAction::Type(encode::type_named(t).map_err(refused)?)
            }
            None if encode::type_named(action).is_ok() => {
                return Err(wrong(format!("write type:{action}")));
            }
            _ => return Err(wrong(format!("'{action}' is none of bpw:B, rank:R, keep, type:T"))),
        };
        Ok(Self { text: text.to_owned(), regex, action })
    }
}

/// Reads rules from a file: one in each line; empty lines and lines that start with `#` do not count.
///
/// # Errors
/// [`Error::Io`], or [`Error::Usage`] that names the line.
pub fn read_rules(path: &Path) -> Result<Vec<Rule>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(i, line)| {
            line.parse().map_err(|e: Error| Error::usage(format!("{}, line {i}: {e}", path.display())))
        })
        .collect()
}

/// Rules with a note of which ones have matched.
#[derive(Debug)]
pub struct Rules<'a> {
    rules: &'a [Rule],
    used: Vec<bool>,
}

impl<'a> Rules<'a> {
    /// None has matched yet.
    pub fn new(rules: &'a [Rule]) -> Self {
        Self { rules, used: vec![false; rules.len()] }
    }

    /// The rule for a weight. Every rule that matches counts as used, also where a later one wins.
    ///
    /// # Errors
    /// [`Error::Usage`] if an expression is too complex to run.
    pub fn find(&mut self, name: &str) -> Result<Option<&'a Rule>> {
        let mut found = None;
        for (rule, used) in self.rules.iter().zip(&mut self.used) {
            let matched = rule.regex.is_match(name);
            if matched.map_err(|e| Error::usage(format!("tensor rule '{rule}' on {name}: {e}")))? {
                *used = true;
                found = Some(rule);
            }
        }
        Ok(found)
    }

    /// # Errors
    /// [`Error::Usage`] for rules that have matched nothing: most likely they are mistyped.
    pub fn finish(self) -> Result<()> {
        let idle: Vec<String> = self
            .rules
            .iter()
            .zip(&self.used)
            .filter(|(_, used)| !**used)
            .map(|(r, _)| format!("'{r}'"))
            .collect();
        if idle.is_empty() {
            return Ok(());
        }
        Err(Error::usage(format!(
            "tensor rule {} matches no weight that can be factorized; --dry-run without it lists their names",
            idle.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_last_match_wins_and_idle_rules_are_errors() {
        let all = rules(&["ffn_=bpw:0.5", r"^blk\.0\.=rank:64", "ffn_down=keep"]);
        let mut r = Rules::new(&all);
        assert_eq!(r.find("blk.1.ffn_up.weight").unwrap().unwrap().action, RuleAction::Bpw(0.5));
        assert_eq!(r.find("blk.0.ffn_up.weight").unwrap().unwrap().action, RuleAction::Rank(64));
        assert!(r.find("blk.1.attn_q.weight").unwrap().is_none());
        assert_eq!(r.find("blk.0.ffn_down.weight").unwrap().unwrap().action, RuleAction::Keep);
        r.finish().unwrap();
        let all = rules(&["ffn_=bpw:0.5", "attn_X=keep"]);
        let mut r = Rules::new(&all);
        r.find("blk.1.ffn_up.weight").unwrap();
        assert!(r.finish().unwrap_err().to_string().contains("'attn_X=keep'"));
    }

    #[test]
    fn bad_rules_say_what_is_wrong() {
        for (text, word) in [
            ("ffn", "REGEX=ACTION"),
            ("(=keep", "tensor rule"),
            ("a=bpw:x", "not a number"),
            ("a=bpw:17", "at most"),
            ("a=rank:33", "nearest is 32"),
            ("a=type:q9_9", "cannot be written"),
            ("a=type:q2_K", "cannot be written"),
            ("a=drop", "none of"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
