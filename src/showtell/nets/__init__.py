"""Networks that diffusers and transformers lack, as subclasses of their own base classes, so they save and load alike."""
