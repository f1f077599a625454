//! The floor: a minimal HTTP prediction server, built from the libraries that Sluicegate uses. It is the baseline of the load tests.
//!
//! One thread per core, each with its own tokio runtime, listening socket (`SO_REUSEPORT`) and ONNX Runtime session;
//! hyper, HTTP/1.1; sonic-rs decodes the Open Inference Protocol body into a `Vec<f32>`; the model runs on the thread that read the
//! request. It has no routing, versions, checks, metrics or log: the difference to it is the cost of those. Not for production.
//!
//! - any `POST`: runs the model on the first input (FP32) and answers its first output
//! - the same with `Inference-Header-Content-Length`: the first input is the bytes after the JSON, used where they are if they are
//!   aligned; the answer has its output after its JSON too
//! - any `GET`: answers a constant, to measure hyper and the sockets alone

use std::borrow::Cow;
use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

const USAGE: &str = "\
sluicegate-floor [--listen ADDR] [--threads N] [--model FILE.onnx] [--sessions N] [--dylib FILE]
  --listen   default 127.0.0.1:8090
  --threads  default: one per core
  --model    one FP32 input, one FP32 output; default models/mlp32/1/model.onnx
  --sessions sessions of the model in each thread, used in turn, to measure what many models cost the engine; default 1
  --dylib    ONNX Runtime's library; default $ORT_DYLIB_PATH, else .ort/libonnxruntime.so";

const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

type AnyError = Box<dyn Error>;

#[derive(Deserialize)]
struct InferRequest {
    inputs: Vec<InputTensor>,
}

#[derive(Deserialize)]
struct InputTensor {
    shape: Vec<i64>,
    data: Vec<f32>,
}

/// The JSON before binary tensors.
#[derive(Deserialize)]
struct BinaryRequest {
    inputs: Vec<BinaryInput>,
}

#[derive(Deserialize)]
struct BinaryInput {
    shape: Vec<i64>,
    parameters: BinarySize,
}

#[derive(Deserialize, Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
struct BinaryAnswer<'a> {
    model_name: &'a str,
    outputs: [BinaryOutput<'a>; 1],
}

#[derive(Serialize)]
struct BinaryOutput<'a> {
    name: &'a str,
    shape: &'a [i64],
    datatype: &'a str,
    parameters: BinarySize,
}

#[derive(Serialize)]
struct InferAnswer<'a> {
    model_name: &'a str,
    outputs: [OutputTensor<'a>; 1],
}

#[derive(Serialize)]
struct OutputTensor<'a> {
    name: &'a str,
    shape: &'a [i64],
    datatype: &'a str,
    data: &'a [f32],
}

/// A session and the names of its input and output.
struct Model {
    session: Session,
    input: String,
    output: String,
}

/// Sessions that are used in turn.
#[derive(Default)]
struct Models {
    models: Vec<Model>,
    next: usize,
}

thread_local! {
    /// The sessions of this thread. Nothing is shared, so `Session::run` needs no lock.
    static MODELS: RefCell<Models> = RefCell::default();
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("floor: {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), AnyError> {
    let options = Options::from_args(std::env::args().skip(1)).map_err(|wrong| format!("{wrong}\n{USAGE}"))?;
    let environment = ort::init_from(&options.dylib)?.build()?;

    let threads: Vec<_> = (0..options.threads)
        .map(|_| {
            // Load and bind here, so that an error ends the program instead of one thread.
            let load = |_| Model::load(&environment, options.model.as_ref());
            let models = (0..options.sessions).map(load).collect::<Result<_, AnyError>>()?;
            let listener = listen(options.listen)?;
            Ok(std::thread::spawn(move || {
                MODELS.set(Models { models, next: 0 });
                serve(listener)
            }))
        })
        .collect::<Result<_, AnyError>>()?;
    println!("floor: {} on {}, {} threads", options.model, options.listen, options.threads);
    for thread in threads {
        thread.join().map_err(|_| "a serving thread panicked")??;
    }
    Ok(())
}

struct Options {
    listen: SocketAddr,
    threads: usize,
    model: String,
    sessions: usize,
    dylib: String,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, AnyError> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8090)),
            threads: std::thread::available_parallelism()?.get(),
            model: "models/mlp32/1/model.onnx".to_owned(),
            sessions: 1,
            dylib: std::env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| ".ort/libonnxruntime.so".to_owned()),
        };
        while let Some(option) = args.next() {
            let value = args.next().ok_or_else(|| format!("{option} wants a value"))?;
            match option.as_str() {
                "--listen" => options.listen = value.parse()?,
                "--threads" => options.threads = value.parse()?,
                "--model" => options.model = value,
                "--sessions" => options.sessions = value.parse::<std::num::NonZeroUsize>()?.get(),
                "--dylib" => options.dylib = value,
                _ => return Err(format!("unknown option {option}").into()),
            }
        }
        Ok(options)
    }
}

impl Models {
    /// The model whose turn it is.
    fn next(&mut self) -> &mut Model {
        self.next = (self.next + 1) % self.models.len();
        &mut self.models[self.next]
    }
}

impl Model {
    fn load(environment: &Environment, path: &Path) -> Result<Self, AnyError> {
        let session =
            Session::builder(environment)?.with_intra_threads(1).map_err(|e| e.to_string())?.commit_from_file(path)?;
        let input = session.inputs().first().ok_or("the model has no input")?.name().to_owned();
        let output = session.outputs().first().ok_or("the model has no output")?.name().to_owned();
        Ok(Self { session, input, output })
    }

    fn answer(&mut self, body: &[u8]) -> Result<Vec<u8>, AnyError> {
        let request: InferRequest = sonic_rs::from_slice(body)?;
        let input = request.inputs.first().ok_or("no inputs")?;
        let tensor = TensorRef::from_array_view((input.shape.as_slice(), input.data.as_slice()))?;
        let outputs = self.session.run(ort::inputs![self.input.as_str() => tensor])?;
        let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
        Ok(sonic_rs::to_vec(&InferAnswer {
            model_name: "floor",
            outputs: [OutputTensor { name: &self.output, shape, datatype: "FP32", data }],
        })?)
    }

    /// The same for a binary tensor after `head` bytes of JSON. Returns the answer and the length of its JSON.
    fn answer_binary(&mut self, body: &[u8], head: usize) -> Result<(Vec<u8>, usize), AnyError> {
        let (head, rest) = body.split_at_checked(head).ok_or("the body is shorter than its JSON")?;
        let request: BinaryRequest = sonic_rs::from_slice(head)?;
        let input = request.inputs.first().ok_or("no inputs")?;
        let bytes = rest.get(..input.parameters.binary_data_size).ok_or("the body is shorter than its tensor")?;
        let values: Cow<[f32]> = match bytemuck::try_cast_slice(bytes) {
            Ok(aligned) => aligned.into(),
            Err(_) => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect::<Vec<_>>().into(),
        };
        let tensor = TensorRef::from_array_view((input.shape.as_slice(), &*values))?;
        let outputs = self.session.run(ort::inputs![self.input.as_str() => tensor])?;
        let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
        let data: &[u8] = bytemuck::cast_slice(data);
        let parameters = BinarySize { binary_data_size: data.len() };
        let mut answer = sonic_rs::to_vec(&BinaryAnswer {
            model_name: "floor",
            outputs: [BinaryOutput { name: &self.output, shape, datatype: "FP32", parameters }],
        })?;
        let head = answer.len();
        answer.extend_from_slice(data);
        Ok((answer, head))
    }
}

/// A socket of one thread on the shared address. The kernel distributes connections.
fn listen(address: SocketAddr) -> Result<std::net::TcpListener, AnyError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn serve(listener: std::net::TcpListener) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
        loop {
            // Failed connections are ignored.
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(handle))
                    .await;
            });
        }
    })
}

async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::GET {
        return Ok(json(StatusCode::OK, Bytes::from_static(br#"{"constant":true}"#)));
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(json(StatusCode::BAD_REQUEST, Bytes::new()));
    };
    let body = body.to_bytes();
    let wrong = |error: AnyError| json(StatusCode::BAD_REQUEST, error.to_string().into());
    let Some(head) = parts.headers.get(HEADER_LENGTH) else {
        let answered = MODELS.with_borrow_mut(|models| models.next().answer(&body));
        return Ok(answered.map_or_else(wrong, |answer| json(StatusCode::OK, answer.into())));
    };
    let Some(head) = head.to_str().ok().and_then(|head| head.parse().ok()) else {
        return Ok(wrong("Inference-Header-Content-Length is not a number".into()));
    };
    let answered = MODELS.with_borrow_mut(|models| models.next().answer_binary(&body, head));
    Ok(answered.map_or_else(wrong, |(answer, head)| {
        let mut response = Response::new(Full::new(answer.into()));
        response.headers_mut().insert(CONTENT_TYPE, const { HeaderValue::from_static("application/octet-stream") });
        response.headers_mut().insert(HEADER_LENGTH, head.into());
        response
    }))
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, const { HeaderValue::from_static("application/json") });
    response
}
