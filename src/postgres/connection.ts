// temporary
export interface Connection extends AsyncDisposable {
  readonly pid: number | null;
}
