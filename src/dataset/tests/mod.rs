mod bucket;
mod export;
mod fixture;
mod replay;
mod search;
mod search_speed;
