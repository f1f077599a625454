mod bench;
mod models;
mod openapi;
mod past;
mod plane;
mod push;
mod traffic;
mod triton;
