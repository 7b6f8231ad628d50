"""One published experiment a module, posed by the public API alone; a new module here is a new case."""
