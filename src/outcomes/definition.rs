//! What a metric is.

use std::collections::BTreeMap;
use std::time::Duration;

/// The metrics of a model, by name.
pub type Metrics = BTreeMap<String, Metric>;

/// One metric of a `model.toml`.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    pub kind: Kind,
    /// The business value that it is about; for kinds that need one.
    pub value: Option<String>,
    /// The output that it is about: its name, and which element of a row. `None`: the output that labels are compared with.
    pub output: Option<(String, usize)>,
    pub unit: UnitOf,
    pub better: Better,
    /// The share of units that keep their values: those above this quantile, and below one minus it, are moved to it.
    pub winsorize: Option<f64>,
    /// The time in which outcomes arrive. Younger requests do not count yet.
    pub label_delay: Duration,
    /// What a row counts as that is old enough and has no value. `None`: it does not count.
    pub absent: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The share of labels that equal the predicted class.
    Accuracy,
    /// The mean of a value from 0 to 1.
    Proportion,
    /// The mean of a value.
    Mean,
    /// The total of a value of each unit.
    Sum,
    /// The area under the ROC curve of a score.
    Auc,
    /// The mean of -ln of the probability of the label.
    LogLoss,
    /// The mean squared difference of the probabilities and the label.
    Brier,
    /// The mean absolute error.
    Mae,
    /// The root of the mean squared error.
    Rmse,
    /// The mean of the prediction minus the label.
    Bias,
}

/// Whose values are independent of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnitOf {
    /// The sticky key of a request, where it has one; else the request.
    #[default]
    Key,
    Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Accuracy,
        Kind::Proportion,
        Kind::Mean,
        Kind::Sum,
        Kind::Auc,
        Kind::LogLoss,
        Kind::Brier,
        Kind::Mae,
        Kind::Rmse,
        Kind::Bias,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Accuracy => "accuracy",
            Kind::Proportion => "proportion",
            Kind::Mean => "mean",
            Kind::Sum => "sum",
            Kind::Auc => "auc",
            Kind::LogLoss => "log_loss",
            Kind::Brier => "brier",
            Kind::Mae => "mae",
            Kind::Rmse => "rmse",
            Kind::Bias => "bias",
        }
    }

    /// Whether it is about a business value; else it is about the label.
    #[must_use]
    pub const fn needs_value(self) -> bool {
        matches!(self, Kind::Proportion | Kind::Mean | Kind::Sum)
    }

    /// Whether it is about one output.
    #[must_use]
    pub const fn takes_output(self) -> bool {
        matches!(self, Kind::Auc | Kind::LogLoss | Kind::Brier | Kind::Mae | Kind::Rmse | Kind::Bias)
    }

    /// Which direction is better if nothing else is said. `None`: neither.
    #[must_use]
    pub const fn better(self) -> Option<Better> {
        match self {
            Kind::LogLoss | Kind::Brier | Kind::Mae | Kind::Rmse => Some(Better::Lower),
            Kind::Bias => None,
            _ => Some(Better::Higher),
        }
    }

    /// Whether what it averages is from 0 to 1.
    pub(super) const fn is_share(self) -> bool {
        matches!(self, Kind::Accuracy | Kind::Proportion)
    }
}

impl Metric {
    /// A metric of a kind with nothing else said.
    #[must_use]
    pub fn of(kind: Kind) -> Metric {
        Metric {
            kind,
            value: None,
            output: None,
            unit: UnitOf::default(),
            better: kind.better().unwrap_or(Better::Higher),
            winsorize: None,
            label_delay: Duration::ZERO,
            absent: None,
        }
    }

    pub(super) fn delay_us(&self) -> i64 {
        i64::try_from(self.label_delay.as_micros()).unwrap_or(i64::MAX)
    }
}

impl Better {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Better::Higher => "higher",
            Better::Lower => "lower",
        }
    }

    /// 1 where higher is better, else -1.
    #[must_use]
    pub const fn sign(self) -> f64 {
        match self {
            Better::Higher => 1.0,
            Better::Lower => -1.0,
        }
    }
}
