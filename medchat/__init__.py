"""MedChat: an educational health chat on a 4-bit base model plus a LoRA adapter."""
