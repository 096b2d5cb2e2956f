//! What nodes sign of the messages that they send.

use cyxcloud_core::receipt::bound_to_operator;

use crate::gateway::RegisterNodeRequest;

const REGISTRATION: &[u8] = b"cyx/register/v2";

/// What a node signs to register: `"cyx/register/v2"` and every field of the request but `signature`, in the order of their numbers:
/// bytes and texts after their length, lengths, numbers and booleans as 8 bytes (BE), of the access token its Blake3 hash, and
/// only where there is one.
///
/// All of it: whoever saw a registration can change nothing of it.
pub fn registration(request: &RegisterNodeRequest) -> Vec<u8> {
    let mut message = REGISTRATION.to_vec();
    let number = |message: &mut Vec<u8>, number: u64| message.extend_from_slice(&number.to_be_bytes());
    let bytes = |message: &mut Vec<u8>, bytes: &[u8]| {
        number(message, bytes.len() as u64);
        message.extend_from_slice(bytes);
    };
    // Named one by one, so that a field that is added does not compile until it is here.
    let RegisterNodeRequest {
        public_key,
        peer_id,
        label,
        name,
        advertise_host,
        grpc_port,
        metrics_port,
        storage_total,
        storage_used,
        region,
        operator,
        version,
        wire_version,
        format_version,
        incarnation,
        signed_at_ms,
        signature: _,
        storage_reserved,
        has_reserved,
        tls,
        access_token,
    } = request;
    bytes(&mut message, public_key);
    for text in [peer_id, label, name, advertise_host] {
        bytes(&mut message, text.as_bytes());
    }
    for port in [grpc_port, metrics_port] {
        number(&mut message, u64::from(*port));
    }
    number(&mut message, *storage_total);
    number(&mut message, *storage_used);
    for text in [region, operator, version] {
        bytes(&mut message, text.as_bytes());
    }
    number(&mut message, u64::from(*wire_version));
    number(&mut message, u64::from(*format_version));
    bytes(&mut message, incarnation);
    message.extend_from_slice(&signed_at_ms.to_be_bytes());
    number(&mut message, *storage_reserved);
    number(&mut message, u64::from(*has_reserved));
    number(&mut message, u64::from(*tls));
    bound_to_operator(message, access_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_are_signed_as_documented() {
        let request = RegisterNodeRequest {
            public_key: vec![1; 32].into(),
            peer_id: "p".to_owned(),
            label: "la".to_owned(),
            name: String::new(),
            advertise_host: "h".to_owned(),
            grpc_port: 0x0102,
            metrics_port: 0x0304,
            storage_total: 8,
            storage_used: 9,
            region: "r".to_owned(),
            operator: "o".to_owned(),
            version: "0.1.0".to_owned(),
            wire_version: 13,
            format_version: 14,
            incarnation: vec![2; 16].into(),
            signed_at_ms: -1,
            signature: vec![3; 64].into(),
            storage_reserved: 18,
            has_reserved: true,
            tls: false,
            access_token: "t".to_owned(),
        };
        let number = |number: u64| number.to_be_bytes().to_vec();
        let text = |text: &str| [number(text.len() as u64), text.as_bytes().to_vec()].concat();
        let want = [
            b"cyx/register/v2".to_vec(),
            number(32),
            vec![1; 32],
            text("p"),
            text("la"),
            text(""),
            text("h"),
            number(0x0102),
            number(0x0304),
            number(8),
            number(9),
            text("r"),
            text("o"),
            text("0.1.0"),
            number(13),
            number(14),
            number(16),
            vec![2; 16],
            vec![0xff; 8],
            number(18),
            number(1),
            number(0),
        ]
        .concat();
        assert_eq!(registration(&request), bound_to_operator(want.clone(), "t"));
        assert_eq!(registration(&RegisterNodeRequest { access_token: String::new(), ..request }), want);
    }
}
