mod export;
mod house;
mod rerun;
