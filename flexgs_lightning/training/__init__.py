"""How it is learned: the LightningModule, losses, densification, callbacks."""
