# Short names for the scripts, which work without just too.

default:
  @just --list

# virtual environment with everything for development
install:
  ./scripts/install dev

# format, lint, types
check:
  ./scripts/check

# the whole gate
test *args:
  ./scripts/test {{args}}

# rewrite what the formatter and the linter can mend
fix:
  .venv/bin/ruff format . && .venv/bin/ruff check --fix .

# real daemons under every fault, by chance: just chaos --seconds 60 --seed 1
chaos *args:
  ./scripts/chaos {{args}}

# build the panel's page; `just panel check` looks at it too
panel *args:
  ./scripts/panel {{args}}

# a version to a fleet over ssh: just deploy inventory.toml --wheel FILE
deploy *args:
  ./scripts/deploy {{args}}

# the main job, end to end, in the terminal
demo:
  ./scripts/demo
