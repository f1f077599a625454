mod gates;
mod golden;
mod house;
mod operators;
mod restart;
mod rules;
mod serving;
mod versions;
