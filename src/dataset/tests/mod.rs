mod export;
mod fixture;
mod replay;
