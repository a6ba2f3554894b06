"""Messages generated from proto/ by `python -m zeropod.api.generate`. Not edited by hand."""
