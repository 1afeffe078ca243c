"""Networks that diffusers and transformers lack, as subclasses of their base classes: they save and load alike."""
