//! How an engine is set up for a model: libraries with custom operators, and execution providers.

/// `[engine]` of `model.toml`, beside the engine's name. Only ONNX Runtime has these.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// File names of libraries with custom operators, in the directory that the server's configuration names.
    pub custom_ops: Vec<String>,
    /// Where the model runs, the best first. Empty: on the CPU.
    pub providers: Vec<Provider>,
}

/// An execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    Cpu,
    Cuda,
    TensorRt,
    OpenVino,
    MiGraphX,
    Rocm,
    OneDnn,
    Xnnpack,
}

impl Provider {
    pub const ALL: [Provider; 8] = [
        Provider::Cpu,
        Provider::Cuda,
        Provider::TensorRt,
        Provider::OpenVino,
        Provider::MiGraphX,
        Provider::Rocm,
        Provider::OneDnn,
        Provider::Xnnpack,
    ];

    /// As `model.toml` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::OpenVino => "openvino",
            Provider::MiGraphX => "migraphx",
            Provider::Rocm => "rocm",
            Provider::OneDnn => "onednn",
            Provider::Xnnpack => "xnnpack",
        }
    }

    /// The provider of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Provider> {
        Provider::ALL.into_iter().find(|provider| provider.as_str() == name)
    }
}

impl EngineOptions {
    /// The most libraries of a model.
    pub const MAX_CUSTOM_OPS: usize = 16;

    /// Whether a text can name a library: a file name without a directory.
    #[must_use]
    pub fn is_library_name(name: &str) -> bool {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        !name.starts_with('.') && (1..=255).contains(&name.len()) && name.chars().all(is_plain)
    }

    /// The names of the providers, separated by commas.
    #[must_use]
    pub fn provider_names(&self) -> String {
        names(&self.providers)
    }
}

/// The names of providers, separated by commas.
pub(super) fn names(providers: &[Provider]) -> String {
    providers.iter().map(|provider| provider.as_str()).collect::<Vec<_>>().join(", ")
}
