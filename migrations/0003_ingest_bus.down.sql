DROP TABLE ingest_claim_item;
DROP TABLE ingest_claim_batch;
DROP TABLE ingest_lease;
DROP TABLE schema_fence;
DROP TABLE idempotency_key;
DROP TABLE ingest_event;
DROP TABLE token_counter;
