"""Live calls: what every streaming face shares. Audio comes in as the caller speaks, frames go out as they are made."""
