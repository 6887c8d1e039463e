DROP TABLE sealing_secret;
DROP TABLE api_key;
DROP TABLE tenant;
DROP FUNCTION duckmesh_now();
