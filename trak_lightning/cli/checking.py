"""trak check: what would be attributed, and at what cost, from a few batches."""

from collections.abc import Sequence

from trak_lightning.cli.output import narrated, summary
from trak_lightning.cli.training import Job
from trak_lightning.errors import IncompleteRunError
from trak_lightning.model.checkpoints import Checkpoint


def check(argv: Sequence[str]) -> int:
    """``trak check``: exit status 0 only if featurizing would go well, as far as one batch can tell."""
    job = Job("check", argv)
    trak = job.trak()
    try:
        source = job.checkpoints()[0]
    except IncompleteRunError:
        summary("weights", "as the model was made: there is no checkpoint yet")
    else:
        Checkpoint.of(source, trak.model, weights_only=job.weights_only).load_into(trak.model)
        summary("weights", source)
    with narrated():
        findings = trak.check(job.train_data, checkpoints=job.num_checkpoints)
    for finding in findings:
        summary(finding.topic, finding.text)
    return 0
