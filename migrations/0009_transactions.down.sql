DROP TABLE transaction_write;
DROP TABLE client_transaction;
