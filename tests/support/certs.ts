/**
 * Certificates for tests of TLS, made when they are needed: nothing secret lies in the repository
 * and nothing expires.
 *
 * @module
 */
import "reflect-metadata";
import * as x509 from "@peculiar/x509";

/** A certificate and its private key, in PEM. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/** What {@linkcode makeCertificates} makes; all are signed by `ca`. */
export interface Certificates {
  /** The authority's certificate, for `ssl: { ca }`. */
  readonly ca: string;
  /** For localhost, 127.0.0.1 and ::1. */
  readonly server: Certificate;
  /** A good one, but for another host. */
  readonly wrongHost: Certificate;
  /** The right host, and no longer valid. */
  readonly expired: Certificate;
  /** For a client; its common name is `postgres`. */
  readonly client: Certificate;
  /** The authority's list of revoked certificates: `wrongHost` is in it. */
  readonly revoked: string;
}

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY = 24 * 3_600_000;

/** Makes an authority of this name and what it signed. Takes a few milliseconds. */
export async function makeCertificates(authorityName = "Test authority"): Promise<Certificates> {
  const authority = await keys();
  const name = `CN=${authorityName}`;
  const root = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: "01",
    name,
    notBefore: new Date(Date.now() - DAY),
    notAfter: new Date(Date.now() + DAY),
    signingAlgorithm: ALGORITHM,
    keys: authority,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(
        x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign,
        true,
      ),
    ],
  });
  let serial = 1;
  const sign = async (subject: string, names: x509.JsonGeneralNames, end = DAY) => {
    const own = await keys();
    const cert = await x509.X509CertificateGenerator.create({
      serialNumber: `0${++serial}`,
      subject: `CN=${subject}`,
      issuer: name,
      notBefore: new Date(Date.now() - 2 * DAY),
      notAfter: new Date(Date.now() + end),
      signingKey: authority.privateKey,
      publicKey: own.publicKey,
      signingAlgorithm: ALGORITHM,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.ExtendedKeyUsageExtension([
          x509.ExtendedKeyUsage.serverAuth,
          x509.ExtendedKeyUsage.clientAuth,
        ]),
        new x509.SubjectAlternativeNameExtension(names),
      ],
    });
    const key = await crypto.subtle.exportKey("pkcs8", own.privateKey);
    return { cert: cert.toString("pem"), key: x509.PemConverter.encode(key, "PRIVATE KEY") };
  };
  const here: x509.JsonGeneralNames = [
    { type: "dns", value: "localhost" },
    { type: "ip", value: "127.0.0.1" },
    { type: "ip", value: "::1" },
  ];
  const wrongHost = await sign("elsewhere.example", [{ type: "dns", value: "elsewhere.example" }]);
  const list = await x509.X509CrlGenerator.create({
    issuer: name,
    thisUpdate: new Date(Date.now() - DAY),
    nextUpdate: new Date(Date.now() + DAY),
    entries: [{
      serialNumber: new x509.X509Certificate(wrongHost.cert).serialNumber,
      revocationDate: new Date(Date.now() - DAY),
      reason: x509.X509CrlReason.keyCompromise,
    }],
    signingAlgorithm: ALGORITHM,
    signingKey: authority.privateKey,
  });
  return {
    ca: root.toString("pem"),
    server: await sign("localhost", here),
    wrongHost,
    expired: await sign("localhost", here, -DAY),
    client: await sign("postgres", [{ type: "dns", value: "postgres" }]),
    revoked: x509.PemConverter.encode(list.rawData, "X509 CRL"),
  };
}

async function keys(): Promise<CryptoKeyPair> {
  return await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]) as CryptoKeyPair;
}
