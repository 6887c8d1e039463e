-- When an API key was last shown, to within minutes.

ALTER TABLE api_key ADD COLUMN last_used_at timestamptz;
