//! A manager whose answers a test decides: for tests of code that has a [`Handle`].

use super::handle::{
    Actor, ApprovalState, Command, Handle, LoadOutcome, Promote, Promotion, Published, Retired, ReviewRequest,
    Reviewed, Rollback, RolledBack, RolloutCommit,
};
use super::manager::Event;
use super::peers::FollowOutcome;
use super::set_aside::SetAside;
use super::shared_push::PushReply;
use crate::ledger::{Note, TokenChange};
use crate::model::{Failure, ModelName, Version};
use crate::route::Proposal;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// A request that the manager received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Promote { model: ModelName, ask: Promote },
    Rollback { model: ModelName, ask: Rollback },
    PutTraffic { model: ModelName, proposal: Proposal, if_match: Option<Vec<u64>>, actor: Actor },
    RolloutCommit { model: ModelName, steer: RolloutCommit, actor: Actor },
    Load { model: ModelName, version: Version, wait: bool, reason: Option<String>, actor: Actor },
    Unload { model: ModelName, version: Version, wait: bool, reason: Option<String>, actor: Actor },
    Retire { model: ModelName, reason: String, actor: Actor },
    LoadModel { model: ModelName, actor: Actor },
    UnloadModel { model: ModelName, actor: Actor },
    Push { model: ModelName, version: Option<Version>, staged: PathBuf, signature: Option<String>, actor: Actor },
    SetAside(SetAside),
    Token(TokenChange),
    Approval { model: ModelName, version: Version },
    Review { model: ModelName, ask: ReviewRequest },
    Note(Note),
}

/// The answer that a test chooses. Its kind must fit the request.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Promoted(Promotion),
    RolledBack(RolledBack),
    Published(Published),
    Steered(u64),
    Retired(Retired),
    Loaded(LoadOutcome),
    Done,
    Stored(bool),
    Approval(ApprovalState),
    Reviewed(Reviewed),
    Refused(Failure),
}

/// A handle whose requests are answered by `answer`, on a thread that ends with the last handle.
pub(crate) fn manager(mut answer: impl FnMut(Asked) -> Told + Send + 'static) -> Handle {
    let (commands, mut asked) = mpsc::channel(8);
    std::thread::spawn(move || {
        while let Some(event) = asked.blocking_recv() {
            // A handle sends only commands.
            if let Event::Command(command) = event {
                reply(command, &mut answer);
            }
        }
    });
    Handle { commands }
}

fn reply(command: Command, answer: &mut impl FnMut(Asked) -> Told) {
    // A send fails only when the caller no longer waits.
    macro_rules! send {
        ($reply:expr, $asked:expr, $reply_kind:pat => $value:expr) => {
            let _ = $reply.send(match answer($asked) {
                $reply_kind => Ok($value),
                Told::Refused(failure) => Err(failure),
                other => panic!("a test answered {other:?}, which does not fit the request"),
            });
        };
    }
    match command {
        Command::Promote { model, request: ask, reply } => {
            send!(reply, Asked::Promote { model, ask }, Told::Promoted(p) => p);
        }
        Command::Rollback { model, request: ask, reply } => {
            send!(reply, Asked::Rollback { model, ask }, Told::RolledBack(r) => r);
        }
        Command::PutTraffic { model, proposal, if_match, actor, reply } => {
            let asked = Asked::PutTraffic { model, proposal: *proposal, if_match, actor };
            send!(reply, asked, Told::Published(p) => p);
        }
        Command::RolloutCommit { model, commit, actor, reply } => {
            send!(reply, Asked::RolloutCommit { model, steer: *commit, actor }, Told::Steered(revision) => revision);
        }
        Command::Load { model, version, wait, reason, actor, reply } => {
            send!(reply, Asked::Load { model, version, wait, reason, actor }, Told::Loaded(l) => l);
        }
        Command::Unload { model, version, wait, reason, actor, reply } => {
            send!(reply, Asked::Unload { model, version, wait, reason, actor }, Told::Loaded(l) => l);
        }
        Command::Retire { model, reason, actor, reply } => {
            send!(reply, Asked::Retire { model, reason, actor }, Told::Retired(r) => r);
        }
        Command::LoadModel { model, actor, reply } => {
            send!(reply, Asked::LoadModel { model, actor }, Told::Done => ());
        }
        Command::UnloadModel { model, actor, reply } => {
            send!(reply, Asked::UnloadModel { model, actor }, Told::Done => ());
        }
        // Nothing waits for it.
        Command::SetAside(aside) => drop(answer(Asked::SetAside(aside))),
        Command::Token { change, reply } => {
            send!(reply, Asked::Token(*change), Told::Stored(stored) => stored);
        }
        // In a test with this manager there is no fleet.
        Command::TokenUses(_) | Command::Push { reply: PushReply::Checked(_), .. } | Command::Pushed { .. } => {}
        // Every state can be put in force at once.
        Command::Follow { reply, .. } => drop(reply.send(Ok(FollowOutcome::InForce))),
        Command::FollowToken { reply, .. } => drop(reply.send(Ok(false))),
        Command::SharedStates { reply } => drop(reply.send(Ok(Vec::new()))),
        Command::Approval { model, version, reply } => {
            send!(reply, Asked::Approval { model, version }, Told::Approval(state) => state);
        }
        Command::Review { model, request, reply } => {
            send!(reply, Asked::Review { model, ask: *request }, Told::Reviewed(reviewed) => reviewed);
        }
        Command::Note { note, reply } => {
            send!(reply, Asked::Note(note), Told::Done => 1);
        }
        Command::Push { model, version, staged, signature, actor, reply: PushReply::Added(reply) } => {
            // What the manager would choose for a model without versions.
            let number = version.unwrap_or_else(|| "1".parse().expect("a version"));
            send!(reply, Asked::Push { model, version, staged, signature, actor }, Told::Done => number);
        }
    }
}
