// The type of the vendored QR code generator. tsc reads this file instead of its code, which is not strict.
export function encode(text: string, options?: { border?: number }): { size: number; data: boolean[][] };
