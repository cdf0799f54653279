"""Text becomes batches: documents ▶ tokens ▶ vectors ▶ clusters ▶ batches; knows no model but an embedding matrix."""
