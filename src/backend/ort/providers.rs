//! Execution providers: which of those that a model names this library has, in their order.

use super::scratch::Scratch;
use crate::backend::options::{Provider, names};
use crate::backend::{EngineOptions, LoadError};
use ort::ep::{
    CPU, CUDA, ExecutionProvider, ExecutionProviderDispatch, MIGraphX, OneDNN, OpenVINO, ROCm, TensorRT, XNNPACK,
};
use ort::session::builder::SessionBuilder;

/// ONNX Runtime runs nodes on the CPU that no other provider has, unless this is set.
const NO_CPU: &str = "session.disable_cpu_ep_fallback";

/// The providers for a session.
#[derive(Debug)]
pub(super) struct Providers {
    /// In the order of preference, without the CPU.
    accelerators: Vec<Provider>,
    with_cpu: bool,
}

impl Providers {
    /// The providers that a model names and this library has.
    ///
    /// # Errors
    /// When it has none of them, with those that it has.
    pub(super) fn choose(options: &EngineOptions, version: &str) -> Result<Providers, LoadError> {
        if options.providers.is_empty() {
            return Ok(Providers { accelerators: Vec::new(), with_cpu: true });
        }
        let has = |provider: &Provider| is_in_library(*provider);
        let (present, missing): (Vec<Provider>, Vec<Provider>) = options.providers.iter().copied().partition(has);
        if present.is_empty() {
            let all: Vec<Provider> = Provider::ALL.into_iter().filter(has).collect();
            return Err(LoadError::Unsupported(format!(
                "the model asks for the execution providers {}, and this library of ONNX Runtime {version} has {}: install a library with one \
                 of them, or add \"cpu\" to [engine] providers",
                options.provider_names(),
                names(&all)
            )));
        }
        if !missing.is_empty() {
            tracing::info!(
                missing = names(&missing),
                used = names(&present),
                "the library of ONNX Runtime lacks execution providers that a model names; the next ones in its list are used"
            );
        }
        let with_cpu = present.contains(&Provider::Cpu);
        let accelerators = present.into_iter().filter(|provider| *provider != Provider::Cpu).collect();
        Ok(Providers { accelerators, with_cpu })
    }

    /// Adds them to a session. One that cannot be used on this machine, such as CUDA without a device, is left out where another one is left.
    ///
    /// # Errors
    /// The engine's reason when none is left.
    pub(super) fn add_to(&self, builder: SessionBuilder, scratch: Scratch) -> Result<SessionBuilder, ort::Error> {
        let mut builder = builder;
        let mut failed = None;
        let mut added = 0;
        for provider in &self.accelerators {
            let Some(dispatch) = dispatch(*provider) else { continue };
            builder = match builder.with_execution_providers([dispatch.error_on_failure()]) {
                Ok(builder) => {
                    added += 1;
                    builder
                }
                Err(error) => {
                    tracing::warn!(provider = provider.as_str(), %error, "an execution provider cannot be used on this machine");
                    let message = error.message().to_owned();
                    let builder = error.recover();
                    failed = Some(message);
                    builder
                }
            };
        }
        if self.with_cpu {
            let cpu = CPU::default().with_arena_allocator(scratch == Scratch::Arena).build();
            return Ok(builder.with_execution_providers([cpu])?);
        }
        match failed {
            Some(message) if added == 0 => Err(ort::Error::new(message)),
            _ => Ok(builder.with_config_entry(NO_CPU, "1")?),
        }
    }
}

/// Whether a model can run elsewhere than on the CPU: it names another provider, and the library, which is loaded, has it.
pub(in crate::backend) fn has_accelerator(options: &EngineOptions) -> bool {
    options.providers.iter().any(|provider| *provider != Provider::Cpu && is_in_library(*provider))
}

fn is_in_library(provider: Provider) -> bool {
    let found = match provider {
        Provider::Cpu => return true,
        Provider::Cuda => CUDA::is_available(),
        Provider::TensorRt => TensorRT::is_available(),
        Provider::OpenVino => OpenVINO::is_available(),
        Provider::MiGraphX => MIGraphX::is_available(),
        Provider::Rocm => ROCm::is_available(),
        Provider::OneDnn => OneDNN::is_available(),
        Provider::Xnnpack => XNNPACK::is_available(),
    };
    found.unwrap_or(false)
}

fn dispatch(provider: Provider) -> Option<ExecutionProviderDispatch> {
    Some(match provider {
        Provider::Cpu => return None,
        Provider::Cuda => CUDA::default().build(),
        Provider::TensorRt => TensorRT::default().build(),
        Provider::OpenVino => OpenVINO::default().build(),
        Provider::MiGraphX => MIGraphX::default().build(),
        Provider::Rocm => ROCm::default().build(),
        Provider::OneDnn => OneDNN::default().build(),
        Provider::Xnnpack => XNNPACK::default().build(),
    })
}
