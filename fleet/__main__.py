"""Start the operators' program: `python -m fleet`, the same commands as `overspill`."""

from __future__ import annotations

import typer

from fleet.cli import apply, audit, daemon, dead, device, model, rollout, trust
from lifecycle.logs import configure_logs

app = typer.Typer(
    name="fleet",
    help="Overspill's registry, rollouts and inventory.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(model.app, name="model")
app.add_typer(rollout.app, name="rollout")
app.add_typer(device.app, name="device")
app.add_typer(audit.app, name="audit")
app.add_typer(trust.app, name="trust")
app.add_typer(dead.app, name="dead")
app.add_typer(daemon.app, name="fleet")
app.command("apply")(apply.apply)
app.command("diff")(apply.diff)


def main() -> None:
    """Run the command line."""
    # Standard output is for results; the daemon sets up its own logs.
    configure_logs("error")
    app()


if __name__ == "__main__":
    main()
